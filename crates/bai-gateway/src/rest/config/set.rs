//! `POST /config/set`: a value, or an object of them.

use bai_core::config::ConfigValue;
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
    let value = params.text_or_mapping("value");
    params.finish()?;
    let value = match value {
        Value::Object(tree) => ConfigValue::Tree(tree),
        Value::String(text) => ConfigValue::Text(text),
        _ => return Err(Problem::internal()),
    };
    call.gateway.manager.config_set(&call.op, &key, value).await?;
    json(StatusCode::OK, &json!({ "result": "ok" }))
}
