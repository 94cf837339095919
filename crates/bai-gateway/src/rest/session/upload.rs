//! `POST /kernel/{session}/upload`: files into a session (`http-api.md` 4.8.10). Nothing is written unless every file
//! is within the limits.

use bai_core::Error;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use multer::Multipart;

use super::session;
use crate::body::empty;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

/// Files in one request.
const MAX_FILES: usize = 20;
/// A file must be smaller than this.
const MAX_FILE_SIZE: usize = 1 << 20;

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let content_type = call
        .parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let boundary = multer::parse_boundary(content_type)
        .map_err(|_| Error::invalid("The body must be multipart/form-data with a boundary"))?;
    call.gateway
        .manager
        .session_open_stream(&call.op, &session(&call))
        .await?;
    let mut parts = Multipart::new(call.streaming_body().into_data_stream(), boundary);
    let mut files: Vec<(String, Bytes)> = Vec::new();
    let malformed = |error: multer::Error| Error::invalid(format!("Malformed multipart body: {error}"));
    while let Some(mut part) = parts.next_field().await.map_err(malformed)? {
        if files.len() == MAX_FILES {
            return Err(Error::invalid("Too many files").into());
        }
        let name = part
            .file_name()
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        let name = name.ok_or_else(|| Error::invalid("Every part must have a filename"))?;
        let mut data = BytesMut::new();
        while let Some(chunk) = part.chunk().await.map_err(malformed)? {
            if data.len() + chunk.len() >= MAX_FILE_SIZE {
                return Err(Error::invalid("Too large file").into());
            }
            data.extend_from_slice(&chunk);
        }
        files.push((name, data.freeze()));
    }
    call.gateway
        .manager
        .session_upload(&call.op, &session(&call), files)
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
