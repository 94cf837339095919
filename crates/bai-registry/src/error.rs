//! What can go wrong with a registry, always with its name and what was asked for.

use std::fmt;

/// A failed question to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The registry's name in the configuration.
    pub registry: String,
    /// What was asked for: a repository, an image; empty for the registry itself.
    pub subject: String,
    pub cause: Cause,
}

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The settings of the registry cannot work.
    #[error("{0}")]
    Settings(String),
    /// No connection, or it broke, also after trying again.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time, also after trying again.
    #[error("did not answer in time")]
    TimedOut,
    /// The registry wants credentials, or others.
    #[error("wants (other) credentials: set username and password of the registry")]
    Unauthorized,
    /// Any other status than the expected ones, also after trying again.
    #[error("answered with status {0}")]
    Status(u16),
    /// It asks to wait for longer than a scan can.
    #[error("asks to come back in {0} seconds")]
    Busy(u64),
    /// More than a sensible answer has.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    /// The answer is not what the API says.
    #[error("{0}")]
    Malformed(String),
    /// Correct, but nothing that can be used here.
    #[error("{0}")]
    Unsupported(String),
}

impl Cause {
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed(what.into())
    }

    /// Whether the same question may be answered shortly after.
    pub(crate) fn passes(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::TimedOut | Self::Status(429 | 500 | 502 | 503 | 504)
        )
    }

    pub(crate) fn of(self, registry: &str, subject: &str) -> Error {
        Error {
            registry: registry.to_owned(),
            subject: subject.to_owned(),
            cause: self,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry {}: ", self.registry)?;
        if !self.subject.is_empty() {
            write!(f, "{}: ", self.subject)?;
        }
        self.cause.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}
