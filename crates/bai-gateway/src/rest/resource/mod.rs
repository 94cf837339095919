//! `/resource` (`http-api.md` 4.12): presets, quotas and usage. Verbs without parameters are here, the others have files.

pub(super) mod add_image;
pub(super) mod check_presets;
pub(super) mod usage;

use bai_core::resource::Preset;
use http::StatusCode;
use serde_json::{Value, json};

use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

fn encode(preset: &Preset) -> Value {
    json!({ "name": preset.name, "resource_slots": preset.resource_slots })
}

pub(super) async fn presets(call: Call) -> Result<Answer, Problem> {
    let presets = call.gateway.manager.resource_presets(&call.op).await?;
    let presets: Vec<Value> = presets.iter().map(encode).collect();
    json(StatusCode::OK, &json!({ "presets": presets }))
}

pub(super) async fn recalculate_usage(call: Call) -> Result<Answer, Problem> {
    call.gateway.manager.resource_recalculate_usage(&call.op).await?;
    json(StatusCode::OK, &json!({}))
}
