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
use serde_json::{Map, Value, json};

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

/// A JSON object as the body ("style B"). What is wrong with it is told in the parser's words.
pub(super) async fn json_body(call: &mut Call) -> Result<Map<String, Value>, Problem> {
    let body = call.body().await?.unwrap_or_default();
    let message = match serde_json::from_slice::<Value>(&body) {
        Ok(Value::Object(members)) => return Ok(members),
        Ok(_) => "The body must be a JSON object".to_owned(),
        // The original's words for the commonest mistake.
        Err(_) if body.is_empty() => "Expecting value: line 1 column 1 (char 0)".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::invalid(message).into())
}

/// A text member of a JSON body; absent and null are nothing.
pub(super) fn text_member(members: &Map<String, Value>, name: &str) -> Result<Option<String>, Error> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::invalid(format!("{name} must be a string"))),
    }
}

/// The `options` of a JSON body: an object; absent and null are an empty one.
pub(super) fn options_member(members: &Map<String, Value>) -> Result<Map<String, Value>, Error> {
    match members.get("options") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(options)) => Ok(options.clone()),
        Some(_) => Err(Error::invalid("options must be an object or null")),
    }
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
