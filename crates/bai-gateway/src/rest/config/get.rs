//! `POST /config/get`: a value, or the nested object below a prefix.

use http::StatusCode;
use serde_json::{Value, json};

use crate::body::json;
use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let key = params.string(&["key"]);
    let is_prefix = params.boolean_or("prefix", false);
    params.finish()?;
    let manager = &call.gateway.manager;
    let result: Value = if is_prefix {
        manager.config_get_prefix(&call.op, &key).await?
    } else {
        manager.config_get(&call.op, &key).await?.into()
    };
    json(StatusCode::OK, &json!({ "result": result }))
}
