//! `/kernel` (`http-api.md` 4.8): compute sessions. Verbs without parameters are here, the others have files.

pub(super) mod complete;
pub(super) mod create;
pub(super) mod download;
pub(in crate::rest) mod execute;
pub(super) mod files;
pub(super) mod upload;

use bai_core::Error;
use bai_core::session::SessionRef;
use bai_model::AccessKey;
use http::StatusCode;
use serde_json::{Value, json};

use crate::body::{empty, json};
use crate::error::Problem;
use crate::params::query_value;
use crate::pipeline::{Answer, Call};

/// The owner that the query names (`http-api.md` 1.14).
pub(super) fn owner(call: &Call) -> Option<AccessKey> {
    query_value(call.query(), "owner_access_key")
        .filter(|owner| !owner.is_empty())
        .map(AccessKey)
}

/// The session that the path and the query name.
pub(super) fn session(call: &Call) -> SessionRef {
    SessionRef {
        name: call.parameter.clone().unwrap_or_default(),
        owner: owner(call),
    }
}

/// A JSON object as the body ("style B"); what is wrong with it is told in the parser's words where `tell` is set.
pub(super) async fn json_body(
    call: &mut Call,
    tell: bool,
) -> Result<serde_json::Map<String, Value>, Problem> {
    let body = call.body().await?.unwrap_or_default();
    let message = match serde_json::from_slice::<Value>(&body) {
        Ok(Value::Object(members)) => return Ok(members),
        Ok(_) => "value is not a dict".to_owned(),
        // The original's words for the commonest mistake.
        Err(_) if body.is_empty() => "Expecting value: line 1 column 1 (char 0)".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::invalid(if tell { message } else { String::new() }).into())
}

pub(super) async fn info(call: Call) -> Result<Answer, Problem> {
    json(
        StatusCode::OK,
        &call
            .gateway
            .manager
            .session_info(&call.op, &session(&call))
            .await?,
    )
}

pub(super) async fn restart(call: Call) -> Result<Answer, Problem> {
    call.gateway
        .manager
        .session_restart(&call.op, &session(&call))
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn destroy(call: Call) -> Result<Answer, Problem> {
    let stats = call
        .gateway
        .manager
        .session_destroy(&call.op, &session(&call))
        .await?;
    json(StatusCode::OK, &json!({ "stats": stats }))
}

pub(super) async fn interrupt(call: Call) -> Result<Answer, Problem> {
    call.gateway
        .manager
        .session_interrupt(&call.op, &session(&call))
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn logs(call: Call) -> Result<Answer, Problem> {
    let logs = call
        .gateway
        .manager
        .session_logs(&call.op, &session(&call))
        .await?;
    json(StatusCode::OK, &json!({ "result": { "logs": logs } }))
}
