//! `POST /kernel/{session}/complete`: names that could continue the code (`http-api.md` 4.8.7, Q-21).

use http::StatusCode;
use serde_json::{Value, json};

use super::{json_body, options_member, session, text_member};
use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = json_body(&mut call).await?;
    let code = text_member(&members, "code")?.unwrap_or_default();
    let options = options_member(&members)?;
    answer(call, code, Value::Object(options)).await
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
