//! `POST /auth/authorize`: a login, e-mail and password for a keypair.

use bai_core::Error;
use http::StatusCode;
use serde_json::json;

use crate::body::json;
use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let kind = params.variant("type", &["keypair", "jwt"]);
    let domain = params.string(&["domain"]);
    let username = params.string(&["username"]);
    let password = params.string(&["password"]);
    params.finish()?;
    if kind == "jwt" {
        return Err(Error::invalid("Unsupported authorization type").into());
    }
    let authorized = call
        .gateway
        .manager
        .authorize(&call.op, &domain, &username, &password)
        .await?;
    let data = json!({
        "access_key": authorized.access_key,
        "secret_key": authorized.secret_key.expose(),
        "role": authorized.role,
    });
    json(StatusCode::OK, &json!({ "data": data }))
}
