//! `GET|POST /auth` and `/auth/test`: whether a signature holds.

use http::StatusCode;
use serde_json::json;

use crate::body::json;
use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let echo = params.string(&["echo"]);
    params.finish()?;
    json(StatusCode::OK, &json!({ "authorized": "yes", "echo": echo }))
}
