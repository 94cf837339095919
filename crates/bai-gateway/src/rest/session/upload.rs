//! `POST /kernel/{session}/upload`: files into a session (`http-api.md` 4.8.10). Nothing is written unless every file
//! is within the limits.

use std::time::Duration;

use axum::body::Body;
use bai_core::Error;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use multer::{Constraints, Multipart, SizeLimit};

use super::session;
use crate::body::empty;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

/// Files in one request.
const MAX_FILES: usize = 20;
/// A file must be smaller than this.
const MAX_FILE_SIZE: usize = 1 << 20;
/// All of it: one file more than is allowed, so that the limits above are what is told, with their headers.
const MAX_BODY: u64 = ((MAX_FILES + 1) * MAX_FILE_SIZE) as u64;
/// How long a client may take to send it.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let content_type = call
        .parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let boundary = multer::parse_boundary(content_type)
        .map_err(|_| Error::invalid("The body must be multipart/form-data with a boundary"))?;
    let (op, session) = (call.op.clone(), session(&call));
    let manager = call.gateway.manager.clone();
    if !manager.session_exists(&op, &session).await? {
        return Err(Error::KernelNotFound.into());
    }
    let gateway = call.gateway.clone();
    // The semaphore is never closed.
    let _permit = gateway.uploads.acquire().await.ok();
    let gathered = tokio::time::timeout(UPLOAD_TIMEOUT, gather(call.streaming_body(), boundary)).await;
    let files = gathered.map_err(|_| {
        Error::invalid("The files did not arrive in time; send less at once, within ten minutes")
    })??;
    manager.session_upload(&op, &session, files).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The files of a multipart body, each within its limit.
async fn gather(body: Body, boundary: String) -> Result<Vec<(String, Bytes)>, Problem> {
    let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(MAX_BODY));
    let mut parts = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
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
    Ok(files)
}
