//! `POST /manager/announcement`: says something to everybody, or nothing any more.

use bai_core::Error;
use http::StatusCode;
use serde_json::Value;

use super::members;
use crate::body::empty;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = members(&mut call).await?;
    let is_enabled = match members.get("enabled") {
        None => true,
        Some(Value::Bool(flag)) => *flag,
        Some(_) => return Err(Error::invalid("enabled must be true or false").into()),
    };
    let message = match members.get("message") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) if !text.contains('\0') => text,
        Some(_) => return Err(Error::invalid("message must be a string without NUL characters").into()),
    };
    call.gateway
        .manager
        .manager_announce(&call.op, is_enabled.then_some(message))
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
