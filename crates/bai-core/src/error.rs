//! Everything that an operation may answer instead of its result: one closed, transport-free enum.
//!
//! The variants are the error classes of `http-api.md` 2.2; the gateway maps each to a status, a type and a title in
//! one place. Text in a variant is for the requester and says what to change; causes that are not the requester's
//! business are logged where they happen, and the requester gets [`Error::Internal`] with a request id.

use bai_proto::agent::AgentError;
use serde_json::Value;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// `general-error`, 500: for example an unknown group or domain in session creation.
    #[error("{0}")]
    General(String),
    /// `generic-bad-request`, 400.
    #[error("{0}")]
    BadRequest(String),
    /// `generic-forbidden`, 403.
    #[error("{0}")]
    Forbidden(String),
    /// `auth-failed`, 401, with or without a text.
    #[error("not authorized{}", .0.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Unauthorized(Option<String>),
    /// `invalid-auth-params`, 400.
    #[error("{0}")]
    InvalidAuthParameters(String),
    /// `invalid-api-params`, 400; `data` names the parameters where validation failed.
    #[error("{message}")]
    InvalidParameters { message: String, data: Option<Value> },
    /// `generic-not-found`, 404, with what is missing.
    #[error("{0}")]
    NotFound(String),
    /// `kernel-not-found`, 404.
    #[error("no such session")]
    KernelNotFound,
    /// `app-not-found`, 404, with `<session>:<app>`.
    #[error("no such service: {0}")]
    AppNotFound(String),
    /// `kernel-already-exists`, 400: the name is taken by a session with another image.
    #[error("the session exists with another image")]
    KernelAlreadyExists,
    /// `vfolder-not-found`, 404.
    #[error("no such folder")]
    VFolderNotFound(Option<String>),
    /// `quota-exceeded`, 412: too many sessions. The text says how many.
    #[error("{0}")]
    QuotaExceeded(String),
    /// `rate-limit-exceeded`, 429.
    #[error("rate limit reached")]
    RateLimitExceeded,
    /// `instance-not-available`, 503: no agent fits. The text says what was asked for and what there is.
    #[error("no agent has room: {0}")]
    InstanceNotAvailable(String),
    /// `service-unavailable`, 503, with a text.
    #[error("{0}")]
    ServiceUnavailable(String),
    /// `server-frozen`, 503.
    #[error("the server is frozen for maintenance")]
    ServerFrozen,
    /// `not-implemented`, 503.
    #[error("not implemented")]
    NotImplemented,
    /// `kernel-creation-failed`, 500, with agent details.
    #[error("kernel creation failed: {0}")]
    KernelCreationFailed(AgentError),
    /// `kernel-destruction-failed`, 500, with agent details.
    #[error("kernel destruction failed: {0}")]
    KernelDestructionFailed(AgentError),
    /// `kernel-restart-failed`, 500, with agent details.
    #[error("kernel restart failed: {0}")]
    KernelRestartFailed(AgentError),
    /// `kernel-execution-failed`, 500, with agent details.
    #[error("kernel execution failed: {0}")]
    KernelExecutionFailed(AgentError),
    /// `internal-server-error`, 500, with the text of the agent: a service of a session did not start.
    #[error("Failed to launch the app service: {0}")]
    ServiceFailed(String),
    /// `internal-server-error`, 500. The text is for the log only.
    #[error("internal error: {0}")]
    Internal(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether it is a limit or a lack of room that was in the way.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::QuotaExceeded(_) | Self::InvalidParameters { .. } | Self::InstanceNotAvailable(_)
        )
    }

    /// [`Error::InvalidParameters`] with a sentence and no data.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidParameters {
            message: message.into(),
            data: None,
        }
    }
}

impl From<bai_store::Error> for Error {
    /// Trouble with the database is nothing that the requester could change; while it may pass, they may come again. A
    /// value that does not fit its column is theirs to change.
    fn from(error: bai_store::Error) -> Self {
        match &error {
            bai_store::Error::TooLong { column, limit, .. } => {
                return Self::invalid(format!("{column} must have at most {limit} characters"));
            }
            bai_store::Error::Unstorable(why) => {
                return Self::invalid(format!("the database cannot keep a value: {why}"));
            }
            _ => {}
        }
        match &error {
            bai_store::Error::Fenced { name } => {
                tracing::warn!(duty = name, "another manager has taken this work over");
                Self::ServiceUnavailable("another manager has taken this over; look again".to_owned())
            }
            bai_store::Error::Contention(_) => {
                tracing::warn!(%error, "the database was busy with something else");
                Self::ServiceUnavailable("too many want to change the same; try again shortly".to_owned())
            }
            bai_store::Error::Unavailable(_) => {
                tracing::error!(%error, "the database is away");
                Self::ServiceUnavailable("the database is not available; try again shortly".to_owned())
            }
            _ => {
                tracing::error!(%error, "the database failed");
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<bai_backplane::Error> for Error {
    /// As for the database. Where the service is, and where that is set, is for the log.
    fn from(error: bai_backplane::Error) -> Self {
        match &error {
            bai_backplane::Error::Unavailable(away) => {
                tracing::error!(%error, "a service of the site is away");
                Self::ServiceUnavailable(format!("{} is not available; try again shortly", away.service))
            }
            bai_backplane::Error::Retryable(_) => {
                tracing::error!(%error, "the configuration store or the broker is away");
                Self::ServiceUnavailable(
                    "a service of the site is not available; try again shortly".to_owned(),
                )
            }
            bai_backplane::Error::Terminal(_) => {
                tracing::error!(%error, "the configuration store or the broker failed");
                Self::Internal(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_no_column_can_keep_are_the_requesters_to_change() {
        let too_long = bai_store::Error::TooLong {
            table: "kernels",
            column: "tag",
            limit: 64,
        };
        for error in [too_long, bai_store::Error::Unstorable("a NUL".to_owned())] {
            assert!(matches!(Error::from(error), Error::InvalidParameters { .. }));
        }
    }
}
