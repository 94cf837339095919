//! `/config` (`http-api.md` 4.3): the cluster's configuration. Verbs without parameters are here, the others have files.

pub(super) mod delete;
pub(super) mod get;
pub(super) mod set;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(super) async fn resource_slots(call: Call) -> Result<Answer, Problem> {
    let types = call.gateway.manager.config_resource_slots(&call.op).await?;
    let units: Map<String, Value> = types
        .iter()
        .map(|(name, unit)| (name.to_owned(), unit.as_str().into()))
        .collect();
    json(StatusCode::OK, &units)
}

pub(super) fn vfolder_types(call: &Call) -> Result<Answer, Problem> {
    let types = call.gateway.manager.config_vfolder_types(&call.op)?;
    json(StatusCode::OK, &types)
}

/// In the form of a nested read (`http-api.md` 5.5): the address is the member `""`.
pub(super) async fn docker_registries(call: Call) -> Result<Answer, Problem> {
    let registries = call.gateway.manager.config_docker_registries(&call.op).await?;
    let registries: Map<String, Value> = registries
        .into_iter()
        .map(|(name, url)| (name, json!({ "": url })))
        .collect();
    json(StatusCode::OK, &registries)
}
