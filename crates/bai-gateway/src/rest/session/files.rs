//! `GET /kernel/{session}/files`: a directory listing (`http-api.md` 4.8.9).

use http::StatusCode;

use super::{json_body, session, text_member};
use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = json_body(&mut call).await?;
    let path = text_member(&members, "path")?.unwrap_or_else(|| ".".to_owned());
    json(
        StatusCode::OK,
        &call
            .gateway
            .manager
            .session_files(&call.op, &session(&call), &path)
            .await?,
    )
}
