//! `POST /resource/images`: one more image of the agents' container engines. Not in 19.06.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::body::json;
use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let name = params.string(&["name"]);
    params.finish()?;
    let added = call.gateway.manager.image_add(&call.op, &name).await?;
    let agents: Vec<&str> = added.agents.iter().map(|id| id.0.as_str()).collect();
    let refusals = added
        .refusals
        .iter()
        .map(|(id, why)| (id.0.clone(), Value::from(why.as_str())));
    let refusals: Map<String, Value> = refusals.collect();
    json(
        StatusCode::OK,
        &json!({ "image": added.reference, "agents": agents, "refusals": refusals }),
    )
}
