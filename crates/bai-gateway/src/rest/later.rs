//! Small answers that clients from 19.09 on want at their start (`clients.md` 11.3, item 8).

use http::StatusCode;
use serde_json::json;

use crate::body::json;
use crate::error::Problem;
use crate::pipeline::Answer;

pub(super) fn announcement() -> Result<Answer, Problem> {
    json(StatusCode::OK, &json!({ "enabled": false, "message": "" }))
}

pub(super) fn vfolder_types() -> Result<Answer, Problem> {
    json(StatusCode::OK, &["user", "group"])
}

pub(super) fn docker_registries() -> Result<Answer, Problem> {
    json(StatusCode::OK, &json!({}))
}
