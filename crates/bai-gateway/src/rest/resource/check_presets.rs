//! `POST /resource/check-presets`: what the requester could start now.
//!
//! Clients of 19.06 send nothing, so that nothing in the body is an error; later ones name the group that they mean.

use http::StatusCode;
use serde_json::{Value, json};

use super::encode;
use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let group = body["group"].as_str().filter(|group| !group.is_empty());
    let check = call
        .gateway
        .manager
        .resource_check_presets(&call.op, group)
        .await?;
    let presets: Vec<Value> = check
        .presets
        .iter()
        .map(|(preset, is_allocatable)| {
            let mut preset = encode(preset);
            preset["allocatable"] = (*is_allocatable).into();
            preset
        })
        .collect();
    let mut answer = json!({
        "keypair_limits": check.keypair.limits,
        "keypair_using": check.keypair.using,
        "keypair_remaining": check.keypair.remaining,
        "scaling_group_remaining": check.scaling_group_remaining,
        "presets": presets,
    });
    if let Some(group) = check.group {
        answer["group_limits"] = json!(group.limits);
        answer["group_using"] = json!(group.using);
        answer["group_remaining"] = json!(group.remaining);
    }
    json(StatusCode::OK, &answer)
}
