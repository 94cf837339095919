//! The calls that a manager makes to an agent (`agent-protocol.md` 2), as a trait and typed messages.
//!
//! [`AgentRpc`] is implemented by the agent itself (in the same process), by the ZeroMQ client when the agent is on
//! another host, and by test doubles; callers hold an `Arc<dyn AgentRpc>` and never know which.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bai_model::{KernelId, ResourceSlot, RunId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::AgentImage;

/// An agent, wherever it is. Every method may be called at any time and any number of times.
#[async_trait]
pub trait AgentRpc: Send + Sync + std::fmt::Debug {
    /// Creates and starts a kernel; returns when it can execute. Idempotent here (unlike 19.06, 2.2): a second call
    /// with the id of a running kernel returns the same reply.
    async fn create_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError>;
    /// Kills a kernel and returns its last statistics. An unknown kernel is not an error: it is reported terminated.
    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Value>, AgentError>;
    /// Replaces the kernel's processes by fresh ones, keeping its files, slots and mounts.
    async fn restart_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError>;
    /// Starts, feeds or polls a run and returns at its next boundary or after `flush_timeout` (2.5).
    /// `None` says that the kernel went away while the call waited.
    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError>;
    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError>;
    /// Names that could continue `code`; empty when the runtime cannot tell.
    async fn get_completions(
        &self,
        kernel: KernelId,
        code: String,
        options: Value,
    ) -> Result<Vec<String>, AgentError>;
    /// Everything that the kernel's programs printed, bounded; the oldest is dropped first.
    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError>;
    /// Writes a file below `/home/work`, creating directories. Paths that leave it are refused.
    async fn upload_file(&self, kernel: KernelId, path: String, data: Bytes) -> Result<(), AgentError>;
    /// A tar archive of one file or directory; the member name is its base name.
    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError>;
    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError>;
    /// Postpones the idle time-out.
    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError>;
    /// Starts a service of the kernel, whose port is among those that its creation returned (2.6). An agent that has no
    /// services need not provide it.
    async fn start_service(
        &self,
        _kernel: KernelId,
        _service: String,
        _options: Value,
    ) -> Result<ServiceStart, AgentError> {
        Err(AgentError::not_provided("start_service"))
    }
    /// Offers one more image of the agent's container engine from now on, which is pulled if it is not there, made for
    /// sessions or not. Agents of 19.06 do not provide it.
    async fn add_image(&self, _name: String) -> Result<AgentImage, AgentError> {
        Err(AgentError::not_provided("add_image"))
    }
    /// Kernels that this agent runs, so that a manager can compare them with its own records. Agents of 19.06 do not
    /// provide it ([`AgentError::is_not_provided`]).
    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError>;
    /// Kills every kernel.
    async fn reset_agent(&self) -> Result<(), AgentError>;
}

/// How agents of 19.06 call the lack of a function (`agent-protocol.md` 1.6).
const NOT_PROVIDED: &str = "NotFoundError";

/// Why a call failed (`agent-protocol.md` 1.7).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The agent did not answer in time; whether it did the work is unknown.
    #[error("the agent did not answer in time")]
    Timeout,
    /// The agent answered with an exception: its type's name without module, and its arguments.
    #[error("{}", self.repr())]
    Exception { kind: String, args: Vec<String> },
}

impl AgentError {
    pub fn exception(kind: &str, message: impl Into<String>) -> Self {
        Self::Exception {
            kind: kind.to_owned(),
            args: vec![message.into()],
        }
    }

    /// The agent has no such function, as an older one may not.
    pub fn not_provided(function: &str) -> Self {
        Self::exception(NOT_PROVIDED, function)
    }

    /// Whether this says that the agent has no such function; asking again is of no use.
    pub fn is_not_provided(&self) -> bool {
        matches!(self, Self::Exception { kind, .. } if kind == NOT_PROVIDED)
    }

    /// The text that clients see as `agent-details.exception`, in the form of a Python `repr` because that is what
    /// 19.06 clients print: `FileNotFoundError('no such file: x')`.
    pub fn repr(&self) -> String {
        match self {
            Self::Timeout => "TimeoutError()".to_owned(),
            Self::Exception { kind, args } => {
                let args: Vec<String> = args.iter().map(|arg| python_repr(arg)).collect();
                format!("{kind}({})", args.join(", "))
            }
        }
    }
}

pub(crate) fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push(quote);
    quoted
}

/// What a kernel shall be (`agent-protocol.md` 2.2).
#[derive(Clone, Debug, PartialEq)]
pub struct KernelConfig {
    pub image: ImageConfig,
    pub resource_slots: ResourceSlot,
    /// Seconds without use after which the agent ends the kernel; 0 means never.
    pub idle_timeout: u64,
    pub mounts: Vec<Mount>,
    pub environ: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `registry/name:tag`.
    pub canonical: String,
    pub digest: String,
    pub labels: BTreeMap<String, String>,
    pub registry: RegistryConfig,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    pub name: String,
    pub url: String,
    pub username: Option<String>,
    pub password: Option<String>,
}

impl std::fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A virtual folder to mount at `/home/work/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub name: String,
    pub host: String,
    /// The folder's id as 32 hexadecimal digits.
    pub folder: String,
    pub writable: bool,
}

/// A port of a service inside the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    pub name: String,
    /// `tcp`, `http` or `pty`.
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelCreated {
    /// Where the ports below are reached; `None` for the agent's own host.
    pub kernel_host: Option<String>,
    pub repl_in_port: u16,
    pub repl_out_port: u16,
    pub stdin_port: u16,
    pub stdout_port: u16,
    pub service_ports: Vec<ServicePort>,
    /// The runtime's name for the kernel: a container id, or the sandbox's first process.
    pub container_id: String,
}

/// The run modes of an agent (`agent-protocol.md` 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecuteMode {
    Query,
    Batch,
    Input,
    Continue,
}

impl ExecuteMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Batch => "batch",
            Self::Input => "input",
            Self::Continue => "continue",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExecuteRequest {
    /// `None` lets the agent assign one.
    pub run_id: Option<RunId>,
    pub mode: ExecuteMode,
    /// Source in query mode, typed text in input mode, unused otherwise.
    pub code: String,
    /// Commands of batch mode.
    pub batch: BatchOptions,
    /// How long to gather output before answering `continued`; `None` waits for a boundary.
    pub flush_timeout: Option<Duration>,
}

/// Commands of batch mode: a shell command, `*` for the language's default, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    pub clean: Option<String>,
    pub build: Option<String>,
    pub exec: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExecuteReply {
    pub run_id: RunId,
    pub status: RunStatus,
    pub exit_code: Option<i32>,
    /// Only while waiting for input; an empty map when the runner said nothing about it.
    pub options: Option<serde_json::Map<String, Value>>,
    pub console: Vec<ConsoleItem>,
    pub files: Vec<GeneratedFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    Continued,
    CleanFinished,
    BuildFinished,
    WaitingInput,
    Finished,
    ExecTimeout,
}

impl RunStatus {
    const ALL: [Self; 6] = [
        Self::Continued,
        Self::CleanFinished,
        Self::BuildFinished,
        Self::WaitingInput,
        Self::Finished,
        Self::ExecTimeout,
    ];

    /// The status that is written as `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continued => "continued",
            Self::CleanFinished => "clean-finished",
            Self::BuildFinished => "build-finished",
            Self::WaitingInput => "waiting-input",
            Self::Finished => "finished",
            Self::ExecTimeout => "exec-timeout",
        }
    }

    /// Whether the run is over.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::ExecTimeout)
    }
}

/// One piece of output, in order (`agent-protocol.md` 6.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleItem {
    Stdout(String),
    Stderr(String),
    Media { mime: String, data: String },
    Html(String),
    Log(String),
}

impl ConsoleItem {
    /// `[type, data]`, as API versions from 2 on show it.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Stdout(text) => Value::from(vec!["stdout", text]),
            Self::Stderr(text) => Value::from(vec!["stderr", text]),
            Self::Html(text) => Value::from(vec!["html", text]),
            Self::Log(text) => Value::from(vec!["log", text]),
            Self::Media { mime, data } => Value::Array(vec![
                Value::from("media"),
                Value::from(vec![mime.as_str(), data.as_str()]),
            ]),
        }
    }
}

/// How the start of a service ended (`agent-protocol.md` 2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceStart {
    Started,
    /// It had been started earlier.
    Running,
    /// Why it did not start.
    Failed(String),
}

/// A file that a run left in `.output`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedFile {
    pub name: String,
    pub url: String,
}

/// The answer to a listing: `files` is JSON text of an array of objects, as 19.06 clients decode it (2.8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileListing {
    pub files: String,
    pub errors: String,
    /// The directory listed, ending with a newline; absent when it was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abspath: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_print_as_python_does() {
        let error = AgentError::exception("FileNotFoundError", "Could not found the file: nope");
        assert_eq!(
            error.repr(),
            "FileNotFoundError('Could not found the file: nope')"
        );
        assert_eq!(
            AgentError::exception("KeyError", "it's").repr(),
            "KeyError(\"it's\")"
        );
    }

    #[test]
    fn console_items_are_pairs() {
        let item = ConsoleItem::Media {
            mime: "image/png".into(),
            data: "xx".into(),
        };
        assert_eq!(item.to_json(), serde_json::json!(["media", ["image/png", "xx"]]));
    }
}
