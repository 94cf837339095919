//! The only place where errors become HTTP (`http-api.md` 2): the problem document of each class.

use bai_core::{AgentError, Error};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::pipeline::Answer;

/// Seconds after which a service that was away may be back.
const AWAY_SECONDS: u32 = 3;

/// An answer that is not the wanted one. `type` is the stable discriminator; titles keep their historic spelling.
#[derive(Debug)]
pub(crate) struct Problem(Box<Members>);

#[derive(Debug)]
struct Members {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    message: Option<String>,
    more: Map<String, Value>,
    allow: Option<String>,
    /// Seconds after which the same request may succeed.
    retry_after: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, slug: &'static str, title: &'static str, message: Option<String>) -> Self {
        Self(Box::new(Members {
            status,
            slug,
            title,
            message,
            more: Map::new(),
            allow: None,
            retry_after: None,
        }))
    }

    pub(crate) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "generic-not-found",
            "Unknown URL path.",
            None,
        )
    }

    pub(crate) fn method_not_allowed(allow: String) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let mut problem = Self::new(status, "method-not-allowed", "HTTP Method Not Allowed.", None);
        problem.0.allow = Some(allow);
        problem
    }

    pub(crate) fn bad_request(message: Option<&str>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "generic-bad-request",
            "Bad request.",
            message.map(str::to_owned),
        )
    }

    pub(crate) fn internal() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "internal-server-error", "Internal server error.", None)
    }

    /// The answer to a request whose handler panicked.
    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no text");
        tracing::error!(panic = text, "a handler panicked; this is a defect");
        Self::internal()
    }

    pub(crate) fn invalid_parameters(message: &str, data: Option<Value>) -> Self {
        Error::InvalidParameters {
            message: message.to_owned(),
            data,
        }
        .into()
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(crate) fn into_answer(self) -> Answer {
        let problem = *self.0;
        let title = match problem.message {
            Some(message) => format!("{} ({message})", problem.title),
            None => problem.title.to_owned(),
        };
        let mut body = json!({ "type": type_uri(problem.slug), "title": title });
        if let Value::Object(members) = &mut body {
            members.extend(problem.more);
        }
        let mut answer = Response::new(body.to_string().into());
        *answer.status_mut() = problem.status;
        let content_type = HeaderValue::from_static("application/problem+json; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
        if let Some(allow) = problem.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            answer.headers_mut().insert(ALLOW, allow);
        }
        if let Some(seconds) = problem.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer
    }
}

fn type_uri(slug: &str) -> String {
    format!("https://api.backend.ai/probs/{slug}")
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        use StatusCode as S;
        let with = |status, slug, title, message: Option<String>| Self::new(status, slug, title, message);
        match error {
            Error::General(text) => with(
                S::INTERNAL_SERVER_ERROR,
                "general-error",
                "General Backend API Error.",
                Some(text),
            ),
            Error::BadRequest(text) => {
                with(S::BAD_REQUEST, "generic-bad-request", "Bad request.", Some(text))
            }
            Error::Forbidden(text) => with(
                S::FORBIDDEN,
                "generic-forbidden",
                "Forbidden operation.",
                Some(text),
            ),
            Error::Unauthorized(text) => with(
                S::UNAUTHORIZED,
                "auth-failed",
                "Credential/signature mismatch.",
                text,
            ),
            Error::InvalidAuthParameters(text) => {
                let title = "Missing or invalid authorization parameters.";
                with(S::BAD_REQUEST, "invalid-auth-params", title, Some(text))
            }
            Error::InvalidParameters { message, data } => {
                let message = (!message.is_empty()).then_some(message);
                let title = "Missing or invalid API parameters.";
                let mut problem = with(S::BAD_REQUEST, "invalid-api-params", title, message);
                problem.0.more.extend(data.map(|data| ("data".to_owned(), data)));
                problem
            }
            Error::NotFound(text) => with(S::NOT_FOUND, "generic-not-found", "Unknown URL path.", Some(text)),
            Error::KernelNotFound => with(S::NOT_FOUND, "kernel-not-found", "No such kernel.", None),
            Error::AppNotFound(app) => with(
                S::NOT_FOUND,
                "app-not-found",
                "No such app service provided by the session.",
                Some(app),
            ),
            Error::KernelAlreadyExists => {
                let title = "The kernel already exists with a different runtime type (language).";
                with(S::BAD_REQUEST, "kernel-already-exists", title, None)
            }
            Error::VFolderNotFound(text) => {
                with(S::NOT_FOUND, "vfolder-not-found", "No such virtual folder.", text)
            }
            Error::QuotaExceeded(text) => with(
                S::PRECONDITION_FAILED,
                "quota-exceeded",
                "You have reached your resource limit.",
                Some(text),
            ),
            Error::RateLimitExceeded => {
                let title = "You have reached your API query rate limit.";
                with(S::TOO_MANY_REQUESTS, "rate-limit-exceeded", title, None)
            }
            Error::InstanceNotAvailable(text) => {
                tracing::info!(reason = text, "no agent has room for a session");
                let title = "There is no available instance.";
                with(
                    S::SERVICE_UNAVAILABLE,
                    "instance-not-available",
                    title,
                    Some(text),
                )
            }
            Error::ServiceUnavailable(text) => {
                let title = "Serivce unavailable.";
                let mut problem = with(S::SERVICE_UNAVAILABLE, "service-unavailable", title, Some(text));
                problem.0.retry_after = Some(AWAY_SECONDS);
                problem
            }
            Error::ServerFrozen => {
                let title = "The server is frozen due to maintenance. Please try again later.";
                with(S::SERVICE_UNAVAILABLE, "server-frozen", title, None)
            }
            Error::NotImplemented => {
                let title = "This API query is not implemented.";
                with(S::SERVICE_UNAVAILABLE, "not-implemented", title, None)
            }
            Error::KernelCreationFailed(agent) => {
                of_agent("kernel-creation-failed", "Kernel creation has failed.", &agent)
            }
            Error::KernelDestructionFailed(agent) => of_agent(
                "kernel-destruction-failed",
                "Kernel destruction has failed.",
                &agent,
            ),
            Error::KernelRestartFailed(agent) => {
                of_agent("kernel-restart-failed", "Kernel restart has failed.", &agent)
            }
            Error::KernelExecutionFailed(agent) => of_agent(
                "kernel-execution-failed",
                "Executing user code in the kernel has failed.",
                &agent,
            ),
            Error::ServiceFailed(why) => with(
                S::INTERNAL_SERVER_ERROR,
                "internal-server-error",
                "Internal server error.",
                Some(format!("Failed to launch the app service: {why}")),
            ),
            Error::Internal(text) => {
                tracing::error!(error = text, "a request failed on our side");
                Self::internal()
            }
        }
    }
}

/// The four classes that carry `agent-details` (`http-api.md` 2.4).
fn of_agent(slug: &'static str, title: &'static str, error: &AgentError) -> Problem {
    let details = match error {
        AgentError::Timeout => json!({ "type": type_uri("agent-timeout"), "title": null }),
        AgentError::Exception { .. } => json!({
            "type": type_uri("agent-failure"),
            "title": "Agent-side exception occurred.",
            "exception": error.repr(),
        }),
    };
    let mut problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, slug, title, None);
    problem.0.more.insert("agent-details".to_owned(), details);
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(error: Error) -> (u16, Value) {
        let answer = Problem::from(error).into_answer();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 10_000)
            .await
            .expect("a body");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn agent_failures_show_what_the_agent_said() {
        let error = AgentError::Exception {
            kind: "RuntimeError".into(),
            args: vec!["boom".into()],
        };
        let (status, body) = shown(Error::KernelCreationFailed(error)).await;
        assert_eq!(status, 500);
        assert_eq!(body["agent-details"]["exception"], "RuntimeError('boom')");
        let (_, body) = shown(Error::KernelExecutionFailed(AgentError::Timeout)).await;
        assert_eq!(
            body["agent-details"],
            json!({"type": "https://api.backend.ai/probs/agent-timeout", "title": null})
        );
    }

    #[tokio::test]
    async fn what_is_away_says_when_to_come_again() {
        let problem = Problem::from(Error::ServiceUnavailable("Redis is not available".into()));
        let answer = problem.into_answer();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (503, &HeaderValue::from(3))
        );
        let frozen = Problem::from(Error::ServerFrozen).into_answer();
        assert!(!frozen.headers().contains_key("retry-after"), "nobody knows");
    }

    #[tokio::test]
    async fn internals_stay_inside() {
        let (status, body) = shown(Error::Internal("the secret table is on fire".into())).await;
        assert_eq!(status, 500);
        assert_eq!(body["title"], "Internal server error.");
    }
}
