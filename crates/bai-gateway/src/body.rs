//! Request bodies within their limits, and the ordinary answers.

use std::time::Duration;

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

/// How long a client may take to send a body that is read whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The whole body.
///
/// # Errors
/// 400 when it is larger than [`MAX_BODY`], comes too slowly or breaks off.
pub(crate) async fn read_whole(body: Body) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a request body could not be read");
            Err(Problem::bad_request(Some(&format!(
                "The body must arrive whole and have at most {MAX_BODY} bytes"
            ))))
        }
        Err(_) => Err(Problem::bad_request(Some(
            "The body did not arrive in time; send it within two minutes",
        ))),
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

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn title(body: Body) -> String {
        let answer = read_whole(body).await.expect_err("no body").into_answer();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_are_too_slow_or_too_large_are_refused() {
        let never = stream::pending::<Result<Bytes, std::io::Error>>();
        assert!(title(Body::from_stream(never)).await.contains("in time"));
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096])));
        assert!(title(Body::from_stream(endless)).await.contains("1048576 bytes"));
        let whole = read_whole(Body::from(vec![0; MAX_BODY])).await.expect("a body");
        assert_eq!(whole.len(), MAX_BODY);
    }
}
