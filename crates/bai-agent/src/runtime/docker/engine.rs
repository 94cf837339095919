//! The way to a container engine: where it listens, what it is, and calls that end in time.
//!
//! Only an engine on this machine can run sessions, because their folders are mounted: hence unix sockets only.
//!
//! Invariants: every call has a deadline, so that an engine that hangs hangs nobody else; an error says which call
//! failed, at which engine, and what to do where that is known.
//!
//! Not here: what is asked of the engine.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bai_proto::sandbox::Refusal;
use bollard::errors::Error as ApiError;
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::net::UnixStream;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// For what an engine answers out of its memory.
const QUICK: Duration = Duration::from_secs(10);
/// For what makes or ends processes and file systems.
const SLOW: Duration = Duration::from_secs(30);
/// The library's own limit until an answer begins; ours are shorter.
const LIBRARY_TIMEOUT: u64 = 120;
/// How the engine says that a disk of its own is full: in the system's words.
const FULL: &str = "no space left on device";
/// Older engines lack what containers are limited with here.
const OLDEST_API: (usize, usize) = (1, 40);

/// Why an engine cannot be used, or did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no container engine listens at {0}; start Docker, or set DOCKER_HOST to where it listens")]
    Absent(PathBuf),
    #[error(
        "this user may not use the container engine at {0}; join its group (usually `docker`, with a new login) or run as root"
    )]
    Denied(PathBuf),
    #[error(
        "DOCKER_HOST is {0}: only an engine on this machine can run sessions; use unix:///path/to/docker.sock"
    )]
    Elsewhere(String),
    #[error("the container engine at {socket} cannot be used: {reason}")]
    Unfit { socket: PathBuf, reason: String },
    #[error("the container engine did not {what} within {} s; see whether it hangs (`docker info`)", .deadline.as_secs())]
    Late { what: String, deadline: Duration },
    #[error("the container engine cannot {what}: {message}")]
    Refused {
        what: String,
        /// HTTP status.
        status: u16,
        message: String,
    },
    #[error("the container engine was lost while it should {what}: {reason}")]
    Lost { what: String, reason: String },
}

impl EngineError {
    /// The engine does not have what was named.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Something is there or going on already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// A container engine that answers.
#[derive(Clone, Debug)]
pub struct Engine {
    pub api: Docker,
    pub socket: PathBuf,
    /// The engine's own version, `20.10.24`.
    pub version: String,
    /// Protections and limits that the engine lacks.
    pub lacks: Vec<Refusal>,
}

impl Engine {
    /// Connects to the engine at `host` (`unix:///…`), or at the usual place, and looks at what it can do.
    ///
    /// # Errors
    /// When it is not there, may not be used, or cannot run sessions, with the reason.
    pub async fn connect(host: Option<&str>) -> Result<Self, EngineError> {
        let socket = socket_of(host)?;
        reach(&socket).await?;
        let unfit = |reason: String| EngineError::Unfit {
            socket: socket.clone(),
            reason,
        };
        let api = Docker::connect_with_unix(&socket.to_string_lossy(), LIBRARY_TIMEOUT, API_DEFAULT_VERSION)
            .map_err(|error| unfit(error.to_string()))?;
        let api = in_time("tell its version", QUICK, api.negotiate_version()).await?;
        let version = api.client_version();
        let api_version = (version.major_version, version.minor_version);
        if api_version < OLDEST_API {
            return Err(unfit(format!(
                "it speaks version {}.{} of the Engine API, and {}.{} is needed; upgrade it",
                api_version.0, api_version.1, OLDEST_API.0, OLDEST_API.1
            )));
        }
        let info = in_time("describe itself", QUICK, api.info()).await?;
        if let Some(reason) = unusable(&info) {
            return Err(unfit(reason));
        }
        Ok(Self {
            api,
            version: info.server_version.clone().unwrap_or_default(),
            lacks: lacks(&info),
            socket,
        })
    }

    /// A call that only looks.
    ///
    /// # Errors
    /// When the engine refuses, is gone, or takes longer than ten seconds. `what` completes "cannot …".
    pub async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, EngineError> {
        in_time(what, QUICK, call).await
    }

    /// A call that changes something.
    ///
    /// # Errors
    /// As [`Engine::ask`], after thirty seconds.
    pub async fn have<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, EngineError> {
        in_time(what, SLOW, call).await
    }
}

async fn in_time<T>(
    what: &str,
    deadline: Duration,
    call: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer.map_err(|error| explain(what, error)),
        Err(_) => Err(EngineError::Late {
            what: what.to_owned(),
            deadline,
        }),
    }
}

/// An error of the library in our words.
pub fn explain(what: &str, error: ApiError) -> EngineError {
    let what = what.to_owned();
    let refused = |what, status, mut message: String| {
        if message.contains(FULL) {
            message.push_str("; make room where the engine keeps its data (`docker info` says where)");
        }
        EngineError::Refused {
            what,
            status,
            message,
        }
    };
    match error {
        ApiError::DockerResponseServerError { status_code, message } => refused(what, status_code, message),
        ApiError::DockerStreamError { error } => refused(what, 500, error),
        error => {
            // What went wrong is at the end of the chain ("error trying to connect" is not it).
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            EngineError::Lost {
                what,
                reason: cause.to_string(),
            }
        }
    }
}

fn socket_of(host: Option<&str>) -> Result<PathBuf, EngineError> {
    match host.map(str::trim).filter(|host| !host.is_empty()) {
        None => Ok(PathBuf::from(DEFAULT_SOCKET)),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(EngineError::Elsewhere(host.to_owned())),
        },
    }
}

/// Whether somebody listens, in the operating system's words.
async fn reach(socket: &Path) -> Result<(), EngineError> {
    let Err(error) = UnixStream::connect(socket).await else {
        return Ok(());
    };
    Err(match error.kind() {
        io::ErrorKind::PermissionDenied => EngineError::Denied(socket.to_owned()),
        _ => EngineError::Absent(socket.to_owned()),
    })
}

/// Why this engine cannot run sessions at all.
fn unusable(info: &SystemInfo) -> Option<String> {
    let security = info.security_options.as_deref().unwrap_or_default();
    let has = |name: &str| security.iter().any(|option| option.contains(name));
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Some("its containers are not Linux".to_owned());
    }
    if has("name=rootless") {
        return Some("it runs rootless, where the users of sessions cannot own their folders".to_owned());
    }
    if has("name=userns") {
        return Some("it remaps users (userns-remap), so that sessions cannot own their folders".to_owned());
    }
    None
}

fn lacks(info: &SystemInfo) -> Vec<Refusal> {
    let security = info.security_options.as_deref().unwrap_or_default();
    let has = |name: &str| security.iter().any(|option| option.contains(name));
    let given = |value: Option<bool>| value.unwrap_or(true);
    let checks = [
        (
            given(info.memory_limit),
            "memory cgroup",
            "the engine cannot limit memory; sessions may use all",
        ),
        (
            given(info.swap_limit),
            "swap limit",
            "the engine cannot limit swap; sessions may swap beyond their memory",
        ),
        (
            given(info.cpu_cfs_quota),
            "cpu cgroup",
            "the engine has no CPU quota; sessions are bound to their CPUs only",
        ),
        (
            given(info.cpu_set),
            "cpuset cgroup",
            "the engine cannot bind sessions to CPUs",
        ),
        (
            given(info.pids_limit),
            "pids cgroup",
            "the engine cannot limit the number of processes",
        ),
        (
            has("name=seccomp"),
            "seccomp",
            "the engine has no filter for system calls",
        ),
    ];
    let missing = checks.into_iter().filter(|(is_there, ..)| !is_there);
    missing
        .map(|(_, protection, reason)| Refusal {
            protection: protection.to_owned(),
            reason: reason.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_taken() {
        assert_eq!(socket_of(None).expect("usual"), Path::new(DEFAULT_SOCKET));
        assert_eq!(socket_of(Some("")).expect("usual"), Path::new(DEFAULT_SOCKET));
        assert_eq!(
            socket_of(Some("unix:///run/x.sock")).expect("given"),
            Path::new("/run/x.sock")
        );
        for bad in ["tcp://10.0.0.1:2375", "ssh://host", "/run/x.sock", "unix://x"] {
            let error = socket_of(Some(bad)).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn what_an_engine_lacks_is_told() {
        let info = SystemInfo {
            swap_limit: Some(false),
            security_options: Some(vec!["name=seccomp,profile=default".to_owned()]),
            ..SystemInfo::default()
        };
        let lacks: Vec<String> = lacks(&info)
            .into_iter()
            .map(|refusal| refusal.protection)
            .collect();
        assert_eq!(lacks, ["swap limit"]);
        assert_eq!(unusable(&info), None);
        let rootless = SystemInfo {
            security_options: Some(vec!["name=rootless".to_owned()]),
            ..SystemInfo::default()
        };
        assert!(unusable(&rootless).is_some_and(|why| why.contains("rootless")));
    }

    #[tokio::test]
    async fn nobody_at_the_socket_is_absence() {
        let error = Engine::connect(Some("unix:///nonexistent/docker.sock")).await;
        let error = error.expect_err("nobody is there").to_string();
        assert!(error.contains("/nonexistent/docker.sock"), "{error}");
    }
}
