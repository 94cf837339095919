//! `/manager` (`http-api.md` 4.11): what the managers are doing. Verbs without parameters are here, the others have files.

pub(super) mod announce;
pub(super) mod set_status;

use bai_core::Error;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(super) async fn status(call: Call) -> Result<Answer, Problem> {
    let report = call.gateway.manager.manager_status(&call.op).await?;
    json(
        StatusCode::OK,
        &json!({ "status": report.status.as_str(), "active_sessions": report.active_sessions }),
    )
}

pub(super) async fn announcement(call: Call) -> Result<Answer, Problem> {
    let message = call.gateway.manager.manager_announcement(&call.op).await?;
    json(
        StatusCode::OK,
        &json!({ "enabled": message.is_some(), "message": message.unwrap_or_default() }),
    )
}

/// The JSON object that both ways of writing need.
async fn members(call: &mut Call) -> Result<Map<String, Value>, Problem> {
    let body = call.body().await?.unwrap_or_default();
    match serde_json::from_slice(&body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Error::invalid("The body must be a JSON object").into()),
        Err(_) => Err(Error::invalid("No request body!").into()),
    }
}

/// What Python takes for true.
fn is_truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(members)) => !members.is_empty(),
    }
}
