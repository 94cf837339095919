//! The road of every request, in the order of `http-api.md` 1.2, and the headers that every answer carries.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use bai_core::auth::{RATE_LIMIT_WINDOW, RateLimit};
use bai_core::{Actor, Op};
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, ORIGIN, SERVER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use tracing::Instrument;

use crate::error::Problem;
use crate::route::{Gate, Resolution, resolve};
use crate::version::{self, Major};
use crate::{Gateway, body, cors, rest};

pub(crate) type Answer = Response<Body>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-backendai-requestid");
const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const RATE_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RATE_WINDOW: HeaderName = HeaderName::from_static("x-ratelimit-window");
/// What public endpoints show as their rate limit.
const PUBLIC_RATE_LIMIT: RateLimit = RateLimit {
    limit: 1000,
    remaining: 1000,
};

/// A request on its way to a handler.
pub(crate) struct Call {
    pub gateway: Arc<Gateway>,
    pub op: Op,
    pub version: Major,
    /// The path's parameter.
    pub parameter: Option<String>,
    pub parts: Parts,
    body: CallBody,
}

/// The body is read by the handler, unless the signature needed it before.
enum CallBody {
    Unread(Body),
    Read(Bytes),
}

impl Call {
    /// The whole body; `None` where there is none (`http-api.md` 1.10).
    pub(crate) async fn body(&mut self) -> Result<Option<Bytes>, Problem> {
        if !has_body(&self.parts) {
            return Ok(None);
        }
        match std::mem::replace(&mut self.body, CallBody::Read(Bytes::new())) {
            CallBody::Read(bytes) => Ok(Some(bytes)),
            CallBody::Unread(unread) => body::read_whole(unread).await.map(Some),
        }
    }

    /// The body as it arrives, for uploads.
    pub(crate) fn streaming_body(&mut self) -> Body {
        match std::mem::replace(&mut self.body, CallBody::Read(Bytes::new())) {
            CallBody::Read(bytes) => Body::from(bytes),
            CallBody::Unread(unread) => unread,
        }
    }

    pub(crate) fn query(&self) -> Option<&str> {
        self.parts.uri.query()
    }
}

fn has_body(parts: &Parts) -> bool {
    match parts.headers.get(CONTENT_LENGTH) {
        Some(length) => length.as_bytes() != b"0",
        None => parts.headers.contains_key(TRANSFER_ENCODING),
    }
}

/// Serves one request.
pub(crate) async fn handle(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let now = gateway.clock.now();
    let request_id = request_id(&gateway, &parts);
    let origin = parts.headers.get(ORIGIN).cloned();
    let span = tracing::info_span!(
        "request", request.id = %request_id, method = %parts.method, path = parts.uri.path(), access_key = tracing::field::Empty
    );
    let op = Op {
        request_id: request_id.clone(),
        now,
        actor: Actor::Anonymous,
    };
    let mut answer = async {
        let (answer, is_known) = answer(gateway, op, parts, body).await;
        tracing::debug!(status = answer.status().as_u16(), "answered");
        (answer, is_known)
    }
    .instrument(span)
    .await;
    answer
        .0
        .headers_mut()
        .insert(SERVER, HeaderValue::from_static("BackendAI"));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        answer.0.headers_mut().insert(REQUEST_ID, value);
    }
    if let (Some(origin), true) = (origin, answer.1) {
        cors::expose(&origin, &mut answer.0);
    }
    answer.0
}

/// The answer, and whether the path exists (others get no CORS headers).
async fn answer(gateway: Arc<Gateway>, op: Op, parts: Parts, body: Body) -> (Answer, bool) {
    let method = parts
        .headers
        .get("x-method-override")
        .and_then(|method| method.to_str().ok());
    let method = method
        .filter(|method| !method.is_empty())
        .unwrap_or(parts.method.as_str());
    let (route, parameter, legacy) = match resolve(method, parts.uri.path()) {
        Resolution::NotFound => return (Problem::not_found().into_answer(), false),
        Resolution::MethodNotAllowed { allow } => {
            return (Problem::method_not_allowed(allow).into_answer(), true);
        }
        Resolution::Options { methods } => {
            let answer = match cors::preflight(&parts.headers, &methods) {
                Ok(mut answer) => {
                    show_rate_limit(&mut answer, PUBLIC_RATE_LIMIT);
                    answer
                }
                Err(problem) => problem.into_answer(),
            };
            return (answer, true);
        }
        Resolution::Found {
            route,
            parameter,
            legacy,
        } => (route, parameter, legacy),
    };
    let mut call = match version::negotiate(&parts.headers, legacy) {
        Ok(version) => Call {
            gateway,
            op,
            version,
            parameter,
            parts,
            body: CallBody::Unread(body),
        },
        Err(problem) => return (problem.into_answer(), true),
    };
    let served = async {
        let limit = match route.gate {
            Gate::Public => PUBLIC_RATE_LIMIT,
            Gate::Auth | Gate::Superadmin => authenticate(&mut call).await?,
        };
        call.gateway.manager.check_status(route.status).await?;
        // Core checks again; here it comes before the parameters are looked at.
        match route.gate {
            Gate::Public => {}
            Gate::Auth => _ = call.op.identity()?,
            Gate::Superadmin => call.op.superadmin()?,
        }
        let mut answer = rest::dispatch(route.endpoint, call).await?;
        // Nobody sees headers of a websocket's handshake (3.13).
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            show_rate_limit(&mut answer, limit);
        }
        Ok::<_, Problem>(answer)
    };
    // A defect in one handler is that request's misfortune only.
    let served = AssertUnwindSafe(served).catch_unwind().await;
    let served = served.unwrap_or_else(|panic| Err(Problem::panicked(panic.as_ref())));
    let answer = served.unwrap_or_else(|problem| {
        tracing::debug!(status = problem.status().as_u16(), "refused");
        problem.into_answer()
    });
    (answer, true)
}

/// Verifies the signature and counts the request. An unsigned or wrongly signed request passes as anonymous: the role
/// gate refuses it after the status gate.
async fn authenticate(call: &mut Call) -> Result<RateLimit, Problem> {
    let Some(claim) = call.gateway.claim(&call.parts, call.op.now).await? else {
        return Ok(PUBLIC_RATE_LIMIT);
    };
    if claim.needs_body(&call.parts) {
        let bytes = call.body().await?.unwrap_or_default();
        call.body = CallBody::Read(bytes);
    }
    let body = match &call.body {
        CallBody::Read(bytes) => Some(bytes),
        CallBody::Unread(_) => None,
    };
    let Some(identity) = claim.verify(&call.parts, body) else {
        return Ok(PUBLIC_RATE_LIMIT);
    };
    tracing::Span::current().record("access_key", identity.access_key.as_str());
    call.op.actor = Actor::Keypair(identity);
    Ok(call.gateway.manager.admit(&call.op).await?)
}

fn show_rate_limit(answer: &mut Answer, limit: RateLimit) {
    let headers = answer.headers_mut();
    headers.insert(RATE_LIMIT, limit.limit.into());
    headers.insert(RATE_REMAINING, limit.remaining.into());
    headers.insert(RATE_WINDOW, RATE_LIMIT_WINDOW.into());
}

/// The requester's own id if it is a sane one, else a new one.
fn request_id(gateway: &Gateway, parts: &Parts) -> String {
    let is_sane = |text: &&str| {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let given = parts
        .headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(is_sane);
    given.map_or_else(
        || {
            let mut bytes = [0; 8];
            gateway.random.fill(&mut bytes);
            hex::encode(bytes)
        },
        str::to_owned,
    )
}
