//! `POST /kernel/{session}/complete`: names that could continue the code (`http-api.md` 4.8.7, Q-21).

use http::StatusCode;
use serde_json::{Value, json};

use super::{json_body, session};
use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = json_body(&mut call, false).await?;
    let code = members
        .get("code")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let options = members.get("options").cloned().unwrap_or_default();
    answer(call, code, options).await
}

/// The answer to a completion, also in the execute call's `complete` mode.
pub(super) async fn answer(call: Call, code: String, options: Value) -> Result<Answer, Problem> {
    let completions = call
        .gateway
        .manager
        .session_complete(&call.op, &session(&call), code, options)
        .await?;
    json(
        StatusCode::OK,
        &json!({ "result": { "status": "finished", "completions": completions } }),
    )
}
