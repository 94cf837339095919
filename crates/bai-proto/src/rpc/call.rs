//! The functions of an agent (`agent-protocol.md` 2.1), and what is wrong with arguments that do not fit them (1.6).

use std::time::Duration;

use bai_model::{KernelId, RunId};
use bytes::Bytes;
use rmpv::Value;
use serde_json::Value as Json;

use super::error::ErrorReply;
use super::value;
use crate::agent::{ExecuteMode, ExecuteRequest, KernelConfig};
use crate::msgpack::{At, Unexpected, from_json};

/// One call with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Ping(String),
    PingKernel(KernelId),
    CreateKernel(KernelId, KernelConfig),
    DestroyKernel(KernelId),
    RestartKernel(KernelId, KernelConfig),
    InterruptKernel(KernelId),
    GetCompletions {
        kernel: KernelId,
        code: String,
        options: Json,
    },
    Execute {
        /// 1 wants output by stream, later versions in order.
        api_version: i64,
        kernel: KernelId,
        request: ExecuteRequest,
    },
    StartService {
        kernel: KernelId,
        service: String,
        options: Json,
    },
    UploadFile {
        kernel: KernelId,
        path: String,
        data: Bytes,
    },
    DownloadFile(KernelId, String),
    ListFiles(KernelId, String),
    GetLogs(KernelId),
    RefreshIdle(KernelId),
    /// Nothing happens, as in 19.06.
    ShutdownAgent,
    ResetAgent,
    /// The same as [`Call::ResetAgent`]: what managers of 19.06 call, and its agents lack.
    CleanAllKernels,
    /// Not in 19.06.
    ListKernels,
    AddImage(String),
}

/// A parameter's name, and whether it may be left out.
type Parameter = (&'static str, bool);

const KID: Parameter = ("kid", false);
/// Functions with their parameters.
const FUNCTIONS: &[(&str, &[Parameter])] = &[
    ("ping", &[("msg", false)]),
    ("ping_kernel", &[KID]),
    ("create_kernel", &[KID, ("config", false)]),
    ("destroy_kernel", &[KID]),
    ("restart_kernel", &[KID, ("new_config", false)]),
    ("interrupt_kernel", &[KID]),
    ("get_completions", &[KID, ("text", false), ("opts", false)]),
    (
        "execute",
        &[
            ("api_version", false),
            KID,
            ("run_id", false),
            ("mode", false),
            ("code", false),
            ("opts", false),
            ("flush_timeout", false),
        ],
    ),
    ("start_service", &[KID, ("service", false), ("opts", false)]),
    ("upload_file", &[KID, ("filename", false), ("filedata", false)]),
    ("download_file", &[KID, ("filepath", false)]),
    ("list_files", &[KID, ("path", false)]),
    ("get_logs", &[KID]),
    ("refresh_idle", &[KID]),
    ("shutdown_agent", &[("terminate_kernels", false)]),
    ("reset_agent", &[]),
    ("clean_all_kernels", &[("event", true)]),
    ("list_kernels", &[]),
    ("add_image", &[("name", false)]),
];

impl Call {
    /// The function's name.
    pub fn function(&self) -> &'static str {
        match self {
            Self::Ping(_) => "ping",
            Self::PingKernel(_) => "ping_kernel",
            Self::CreateKernel(..) => "create_kernel",
            Self::DestroyKernel(_) => "destroy_kernel",
            Self::RestartKernel(..) => "restart_kernel",
            Self::InterruptKernel(_) => "interrupt_kernel",
            Self::GetCompletions { .. } => "get_completions",
            Self::Execute { .. } => "execute",
            Self::StartService { .. } => "start_service",
            Self::UploadFile { .. } => "upload_file",
            Self::DownloadFile(..) => "download_file",
            Self::ListFiles(..) => "list_files",
            Self::GetLogs(_) => "get_logs",
            Self::RefreshIdle(_) => "refresh_idle",
            Self::ShutdownAgent => "shutdown_agent",
            Self::ResetAgent => "reset_agent",
            Self::CleanAllKernels => "clean_all_kernels",
            Self::ListKernels => "list_kernels",
            Self::AddImage(_) => "add_image",
        }
    }

    /// The arguments, all by position as a 19.06 manager sends them.
    pub fn args(&self) -> Vec<Value> {
        let id = |kernel: &KernelId| Value::from(kernel.to_string());
        let text = |text: &str| Value::from(text);
        match self {
            Self::Ping(message) => vec![text(message)],
            Self::AddImage(name) => vec![text(name)],
            Self::PingKernel(kernel)
            | Self::DestroyKernel(kernel)
            | Self::InterruptKernel(kernel)
            | Self::GetLogs(kernel)
            | Self::RefreshIdle(kernel) => vec![id(kernel)],
            Self::CreateKernel(kernel, config) => vec![id(kernel), value::creation(config)],
            Self::RestartKernel(kernel, config) => vec![id(kernel), value::restart(config)],
            Self::GetCompletions {
                kernel,
                code,
                options,
            } => {
                vec![id(kernel), text(code), from_json(options)]
            }
            Self::Execute {
                api_version,
                kernel,
                request,
            } => vec![
                Value::from(*api_version),
                id(kernel),
                request
                    .run_id
                    .as_ref()
                    .map_or(Value::Nil, |run| text(run.as_str())),
                text(request.mode.as_str()),
                text(&request.code),
                value::batch(&request.batch),
                request
                    .flush_timeout
                    .map_or(Value::Nil, |timeout| Value::F64(timeout.as_secs_f64())),
            ],
            Self::StartService {
                kernel,
                service,
                options,
            } => vec![id(kernel), text(service), from_json(options)],
            Self::UploadFile { kernel, path, data } => {
                vec![id(kernel), text(path), Value::Binary(data.to_vec())]
            }
            Self::DownloadFile(kernel, path) | Self::ListFiles(kernel, path) => vec![id(kernel), text(path)],
            Self::ShutdownAgent => vec![Value::from(false)],
            Self::CleanAllKernels => vec![text("manager-freeze-force-kill")],
            Self::ResetAgent | Self::ListKernels => vec![],
        }
    }

    /// Reads a call.
    ///
    /// # Errors
    /// The reply for a function that is not published, or arguments that do not fit.
    pub fn decode(function: &str, args: &[Value], kwargs: &[(Value, Value)]) -> Result<Self, ErrorReply> {
        let known = FUNCTIONS.iter().find(|(name, _)| *name == function);
        let (_, parameters) = known.ok_or_else(|| ErrorReply::not_found(function))?;
        // A 19.06 manager names the mode as well.
        let shortened: Vec<Value>;
        let args = match (function, args) {
            ("get_completions", [kernel, _, code, options]) => {
                shortened = vec![kernel.clone(), code.clone(), options.clone()];
                &shortened
            }
            _ => args,
        };
        let bound = Bound::bind(parameters, args, kwargs)?;
        Ok(match function {
            "ping" => Self::Ping(bound.text("msg")?),
            "ping_kernel" => Self::PingKernel(bound.kernel()?),
            "create_kernel" => Self::CreateKernel(bound.kernel()?, bound.config("config")?),
            "destroy_kernel" => Self::DestroyKernel(bound.kernel()?),
            "restart_kernel" => Self::RestartKernel(bound.kernel()?, bound.config("new_config")?),
            "interrupt_kernel" => Self::InterruptKernel(bound.kernel()?),
            "get_completions" => Self::GetCompletions {
                kernel: bound.kernel()?,
                code: bound.text("text")?,
                options: bound.options()?,
            },
            "execute" => Self::Execute {
                api_version: bound.read("api_version", |at| at.number())?,
                kernel: bound.kernel()?,
                request: bound.execute_request()?,
            },
            "start_service" => Self::StartService {
                kernel: bound.kernel()?,
                service: bound.text("service")?,
                options: bound.options()?,
            },
            "upload_file" => Self::UploadFile {
                kernel: bound.kernel()?,
                path: bound.text("filename")?,
                data: bound.data()?,
            },
            "download_file" => Self::DownloadFile(bound.kernel()?, bound.text("filepath")?),
            "list_files" => Self::ListFiles(bound.kernel()?, bound.text("path")?),
            "get_logs" => Self::GetLogs(bound.kernel()?),
            "refresh_idle" => Self::RefreshIdle(bound.kernel()?),
            "shutdown_agent" => Self::ShutdownAgent,
            "reset_agent" => Self::ResetAgent,
            "clean_all_kernels" => Self::CleanAllKernels,
            "add_image" => Self::AddImage(bound.text("name")?),
            _ => Self::ListKernels,
        })
    }
}

/// Arguments by the names of their parameters.
struct Bound<'a>(Vec<(&'static str, &'a Value)>);

impl<'a> Bound<'a> {
    /// Binds as Python does, with its complaints.
    fn bind(
        parameters: &[Parameter],
        args: &'a [Value],
        kwargs: &'a [(Value, Value)],
    ) -> Result<Self, ErrorReply> {
        let complaint = |text: String| ErrorReply::parameters(type_error(&text));
        if args.len() > parameters.len() {
            return Err(complaint("too many positional arguments".to_owned()));
        }
        let mut bound: Vec<(&'static str, &Value)> = Vec::new();
        for (index, (name, is_optional)) in parameters.iter().enumerate() {
            let by_name = kwargs.iter().find(|(key, _)| key.as_str() == Some(name));
            match (args.get(index), by_name) {
                (Some(_), Some(_)) => {
                    return Err(complaint(format!("multiple values for argument '{name}'")));
                }
                (Some(value), None) | (None, Some((_, value))) => bound.push((*name, value)),
                (None, None) if *is_optional => {}
                (None, None) => return Err(complaint(format!("missing a required argument: '{name}'"))),
            }
        }
        let is_known = |key: &Value| parameters.iter().any(|(name, _)| key.as_str() == Some(name));
        if let Some((key, _)) = kwargs.iter().find(|(key, _)| !is_known(key)) {
            let key: String = key.as_str().unwrap_or("?").chars().take(100).collect();
            return Err(complaint(format!("got an unexpected keyword argument '{key}'")));
        }
        Ok(Self(bound))
    }

    fn at(&self, name: &'static str) -> At<'a> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        At::new(found.map_or(&Value::Nil, |(_, value)| value), name)
    }

    /// An argument through a reader that tells what is wrong with it.
    fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(At<'a>) -> Result<T, Unexpected>,
    ) -> Result<T, ErrorReply> {
        read(self.at(name)).map_err(|wrong| invalid(name, &type_error(&wrong.to_string())))
    }

    fn text(&self, name: &'static str) -> Result<String, ErrorReply> {
        self.read(name, |at| at.text().map(str::to_owned))
    }

    fn kernel(&self) -> Result<KernelId, ErrorReply> {
        self.read("kid", |at| {
            at.text()?.parse().map_err(|_| at.wrong("not a kernel id"))
        })
    }

    fn config(&self, name: &'static str) -> Result<KernelConfig, ErrorReply> {
        self.map(name)?;
        self.read(name, value::read_config)
    }

    /// A map, or the complaint about its absence that 19.06 has.
    fn map(&self, name: &'static str) -> Result<At<'a>, ErrorReply> {
        let at = self.at(name);
        match at.value {
            Value::Nil => Err(invalid(name, "TypeError(\"'NoneType' object is not iterable\",)")),
            Value::Map(_) => Ok(at),
            _ => Err(invalid(name, &type_error(&at.wrong("not a map").to_string()))),
        }
    }

    fn options(&self) -> Result<Json, ErrorReply> {
        self.map("opts")?;
        self.read("opts", |at| at.json())
    }

    fn data(&self) -> Result<Bytes, ErrorReply> {
        if self.at("filedata").value.is_str() {
            return Err(invalid(
                "filedata",
                &type_error("string argument without an encoding"),
            ));
        }
        self.read("filedata", |at| at.bytes().map(Bytes::copy_from_slice))
    }

    fn execute_request(&self) -> Result<ExecuteRequest, ErrorReply> {
        let run_id = self.read("run_id", |at| at.optional_text())?;
        if run_id.as_deref() == Some("") {
            let complaint =
                "DataError({0: DataError(blank value is not allowed), 1: DataError(value should be None)})";
            return Err(invalid("run_id", complaint));
        }
        let mode = match self.text("mode")?.as_str() {
            "query" => ExecuteMode::Query,
            "batch" => ExecuteMode::Batch,
            "input" => ExecuteMode::Input,
            _ => ExecuteMode::Continue,
        };
        let code = self.read("code", |at| at.optional_text())?.unwrap_or_default();
        self.map("opts")?;
        let batch = match mode {
            ExecuteMode::Batch => self.read("opts", value::read_batch)?,
            _ => Default::default(),
        };
        let flush_timeout = self.read("flush_timeout", seconds)?;
        Ok(ExecuteRequest {
            run_id: run_id.map(RunId),
            mode,
            code,
            batch,
            flush_timeout,
        })
    }
}

/// A time in seconds; none where nil or infinity is, none at all where it is negative.
fn seconds(at: At<'_>) -> Result<Option<Duration>, Unexpected> {
    let number = match at.value {
        Value::Nil => return Ok(None),
        Value::String(_) => at.text()?.trim().parse().ok(),
        value => value.as_f64(),
    };
    match number {
        Some(number) if !number.is_nan() => Ok(Duration::try_from_secs_f64(number.max(0.0)).ok()),
        _ => Err(at.wrong("not a number")),
    }
}

/// `TypeError('…',)`.
fn type_error(text: &str) -> String {
    format!("TypeError({},)", crate::agent::python_repr(text))
}

fn invalid(argument: &str, repr: &str) -> ErrorReply {
    ErrorReply::parameters(format!("Invalid value for argument '{argument}': {repr}"))
}
