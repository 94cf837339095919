//! `PUT /manager/status`: freezes, thaws, and ends all sessions on demand.

use bai_core::Error;
use bai_core::manager_status::ManagerStatus;
use http::StatusCode;
use serde_json::Value;

use super::{is_truthy, members};
use crate::body::empty;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = members(&mut call).await?;
    let status: ManagerStatus = match members.get("status") {
        Some(Value::String(text)) if !text.is_empty() => text.parse()?,
        status if !is_truthy(status) => return Err(Error::invalid("status is missing or empty!").into()),
        status => {
            let status = status.map(ToString::to_string).unwrap_or_default();
            return Err(Error::invalid(format!("{status} is not a valid ManagerStatus")).into());
        }
    };
    let force_kill = is_truthy(members.get("force_kill"));
    call.gateway
        .manager
        .manager_set_status(&call.op, status, force_kill)
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
