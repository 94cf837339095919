//! Request bodies within their limits, and the ordinary answers.

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;

use crate::error::Problem;
use crate::pipeline::Answer;

/// The largest body that is read whole (`http-api.md` 1.1). Uploads are streamed and have limits of their own.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// The whole body.
///
/// # Errors
/// 400 when it is larger than allowed or breaks off.
pub(crate) async fn read_whole(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => {
            tracing::debug!(%error, "a request body could not be read");
            Err(Problem::bad_request(None))
        }
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Result<Answer, Problem> {
    let text = serde_json::to_string(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        Problem::internal()
    })?;
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    Ok(answer)
}

/// An answer without a body (`http-api.md` 1.8).
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer
}
