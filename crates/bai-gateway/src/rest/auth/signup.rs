//! `POST /auth/signup`: needs a hook that decides who may join; there is none yet, and the answer says so.

use bai_core::Error;

use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    for name in ["domain", "email", "password"] {
        params.string(&[name]);
    }
    params.finish()?;
    Err(Error::NotImplemented.into())
}
