//! Exceptions on the wire (`agent-protocol.md` 1.7, 2.11): the only place that knows the modules of Python's types.

use rmpv::Value;

use crate::agent::{AgentError, python_repr};

const TIMEOUT: &str = "concurrent.futures._base.TimeoutError";
/// Characters of a repr that are passed on.
const MAX_REPR: usize = 4096;
/// What a 19.06 manager takes for "no result", because it is what an agent answers whose kernel went away (1.7.3).
const NO_RESULT: &str = "'NoneType' object is not iterable";

/// Exceptions that are neither built in nor an agent's own, with their modules.
const ELSEWHERE: &[(&str, &str)] = &[
    ("NotFoundError", "aiozmq.rpc.base"),
    ("ParametersError", "aiozmq.rpc.base"),
    ("CancelledError", "concurrent.futures._base"),
    ("DockerError", "aiodocker.exceptions"),
    ("InsufficientResource", "ai.backend.agent.exception"),
    ("InitializationError", "ai.backend.agent.exception"),
];

/// An exception as the parts of a reply have it.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorReply {
    /// Module and name of the type.
    pub exception: String,
    pub args: Vec<Value>,
    /// As Python 3.6 prints it.
    pub repr: String,
}

impl ErrorReply {
    /// `kind` is the type's name without its module.
    fn new(module: &str, kind: &str, args: &[String]) -> Self {
        let quoted: Vec<_> = args.iter().map(|arg| python_repr(arg)).collect();
        let tuple = match quoted.as_slice() {
            [one] => format!("{one},"),
            several => several.join(", "),
        };
        Self {
            exception: format!("{module}.{kind}"),
            args: args.iter().map(|arg| Value::from(arg.as_str())).collect(),
            repr: format!("{kind}({tuple})"),
        }
    }

    /// No function of this name is published.
    pub fn not_found(function: &str) -> Self {
        Self::new("aiozmq.rpc.base", "NotFoundError", &[function.to_owned()])
    }

    /// Arguments that do not fit the function.
    pub fn parameters(message: String) -> Self {
        Self::new("aiozmq.rpc.base", "ParametersError", &[message])
    }

    /// A result of nothing where there must be one.
    pub fn no_result() -> Self {
        Self::new("builtins", "TypeError", &[NO_RESULT.to_owned()])
    }

    /// Whether this means that there is no result (1.7.2).
    pub fn is_no_result(&self) -> bool {
        self.exception == "builtins.TypeError" && self.args.first().and_then(Value::as_str) == Some(NO_RESULT)
    }

    pub(super) fn to_value(&self) -> Value {
        Value::Array(vec![
            Value::from(self.exception.as_str()),
            Value::Array(self.args.clone()),
            Value::from(self.repr.as_str()),
        ])
    }

    pub(super) fn from_value(value: &Value) -> Option<Self> {
        let [exception, Value::Array(args), repr] = value.as_array()?.as_slice() else {
            return None;
        };
        Some(Self {
            exception: exception.as_str()?.to_owned(),
            args: args.clone(),
            repr: repr.as_str()?.to_owned(),
        })
    }
}

/// An agent's failure for a caller of 19.06.
pub fn encode_error(error: &AgentError) -> ErrorReply {
    match error {
        AgentError::Timeout => ErrorReply {
            exception: TIMEOUT.to_owned(),
            args: Vec::new(),
            repr: "TimeoutError()".to_owned(),
        },
        AgentError::Exception { kind, args } => ErrorReply::new(module_of(kind), kind, args),
    }
}

/// The module of a type that is named as in Python; an unknown one is an agent's own.
fn module_of(kind: &str) -> &'static str {
    let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == kind);
    match elsewhere {
        Some((_, module)) => module,
        None if is_built_in(kind) => "builtins",
        None => "ai.backend.agent.exception",
    }
}

/// Built-in exceptions of Python 3.6 that an agent may raise.
fn is_built_in(kind: &str) -> bool {
    const NAMES: &[&str] = &[
        "ArithmeticError",
        "AssertionError",
        "AttributeError",
        "BlockingIOError",
        "BrokenPipeError",
        "BufferError",
        "ConnectionAbortedError",
        "ConnectionError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "EOFError",
        "Exception",
        "FileExistsError",
        "FileNotFoundError",
        "IndexError",
        "InterruptedError",
        "IsADirectoryError",
        "KeyError",
        "LookupError",
        "MemoryError",
        "NameError",
        "NotADirectoryError",
        "NotImplementedError",
        "OSError",
        "OverflowError",
        "PermissionError",
        "ProcessLookupError",
        "RuntimeError",
        "SystemError",
        "TimeoutError",
        "TypeError",
        "UnicodeDecodeError",
        "UnicodeEncodeError",
        "UnicodeError",
        "ValueError",
        "ZeroDivisionError",
    ];
    NAMES.contains(&kind)
}

/// What a reply's exception means to a manager. Arguments that are not text become text.
pub fn decode_error(reply: &ErrorReply) -> AgentError {
    if matches!(
        reply.exception.as_str(),
        TIMEOUT | "asyncio.TimeoutError" | "asyncio.exceptions.TimeoutError"
    ) {
        return AgentError::Timeout;
    }
    let kind = reply.exception.rsplit('.').next().unwrap_or_default();
    let text = |arg: &Value| match arg.as_str() {
        Some(text) => text.to_owned(),
        None => arg.to_string(),
    };
    let mut args: Vec<String> = reply.args.iter().map(text).collect();
    if args.is_empty() {
        args.extend(said_by_repr(kind, &reply.repr));
    }
    AgentError::Exception {
        kind: kind.to_owned(),
        args,
    }
}

/// What an exception says that keeps its arguments to itself, as aiodocker's does: `DockerError(500, 'no space')`.
fn said_by_repr(kind: &str, repr: &str) -> Option<String> {
    let said = repr.strip_prefix(kind)?.strip_prefix('(')?.strip_suffix(')')?;
    (!said.is_empty()).then(|| said.chars().take(MAX_REPR).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_in_the_modules_that_managers_know() {
        let exception = |kind: &str| encode_error(&AgentError::exception(kind, "x")).exception;
        assert_eq!(exception("KeyError"), "builtins.KeyError");
        assert_eq!(exception("NotFoundError"), "aiozmq.rpc.base.NotFoundError");
        assert_eq!(
            exception("InsufficientResource"),
            "ai.backend.agent.exception.InsufficientResource"
        );
        assert_eq!(encode_error(&AgentError::Timeout).exception, TIMEOUT);
    }

    #[test]
    fn an_exception_prints_as_python_3_6_prints_it() {
        let error = AgentError::exception("ValueError", "x");
        assert_eq!(encode_error(&error).repr, "ValueError('x',)");
        let error = AgentError::Exception {
            kind: "ValueError".into(),
            args: vec!["a".into(), "it's".into()],
        };
        assert_eq!(encode_error(&error).repr, "ValueError('a', \"it's\")");
    }

    #[test]
    fn an_exception_without_arguments_is_known_by_its_repr() {
        // As agents with aiodocker 0.17 send it.
        let reply = |repr: &str| ErrorReply {
            exception: "aiodocker.exceptions.DockerError".to_owned(),
            args: Vec::new(),
            repr: repr.to_owned(),
        };
        let error = decode_error(&reply("DockerError(500, 'no such host')"));
        assert_eq!(error, AgentError::exception("DockerError", "500, 'no such host'"));
        let error = decode_error(&reply("DockerError()"));
        assert_eq!(error.repr(), "DockerError()");
    }

    #[test]
    fn errors_survive_the_wire() {
        for error in [
            AgentError::Timeout,
            AgentError::exception("RuntimeError", "no ports"),
            AgentError::Exception {
                kind: "InsufficientResource".into(),
                args: vec![
                    "message".into(),
                    "cpu".into(),
                    "cpu".into(),
                    "8".into(),
                    "2".into(),
                ],
            },
        ] {
            assert_eq!(decode_error(&encode_error(&error)), error);
        }
    }
}
