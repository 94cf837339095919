//! `GET|POST /kernel/{session}/download`: files out of a session, a tar archive each (`http-api.md` 4.8.11).
//!
//! Clients of 19.06 do not parse the multipart answer but search it for lines: part headers may only be `Content-…`,
//! and there is nothing before the first or after the last boundary.

use axum::body::Body;
use bai_core::Error;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};

use super::{json_body, session};
use crate::error::Problem;
use crate::pipeline::{Answer, Call};

/// Files in one request.
const MAX_FILES: usize = 5;

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let mut members = json_body(&mut call).await?;
    let paths: Vec<String> = match members.shift_remove("files").map(serde_json::from_value) {
        Some(Ok(paths)) => paths,
        Some(Err(_)) => return Err(Error::invalid("files must be a list of paths").into()),
        None => Vec::new(),
    };
    if paths.is_empty() {
        return Err(Error::invalid("no file(s) specified!").into());
    }
    if paths.len() > MAX_FILES {
        return Err(Error::invalid("Too many files").into());
    }
    let archives = call
        .gateway
        .manager
        .session_download(&call.op, &session(&call), paths)
        .await?;
    let mut boundary = [0; 16];
    call.gateway.random.fill(&mut boundary);
    let boundary = hex::encode(boundary);
    let mut answer = Response::new(Body::from(multipart(&boundary, &archives)));
    let content_type = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}"));
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, content_type.map_err(|_| Problem::internal())?);
    Ok(answer)
}

fn multipart(boundary: &str, archives: &[Bytes]) -> Vec<u8> {
    let mut body = Vec::with_capacity(archives.iter().map(|archive| archive.len() + 200).sum());
    for archive in archives {
        let head = format!(
            "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            archive.len()
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(archive);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}
