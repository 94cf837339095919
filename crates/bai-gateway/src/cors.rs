//! Cross-origin requests: any origin, any header, no credentials (`http-api.md` 1.7; legacy paths too, Q-56).

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::body::empty;
use crate::error::Problem;
use crate::pipeline::Answer;

/// Headers that browsers show to scripts without being told.
const SIMPLE_HEADERS: [&str; 6] = [
    "cache-control",
    "content-language",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
];

/// The answer to a preflight of a path that has `methods`.
pub(crate) fn preflight(headers: &HeaderMap, methods: &[&str]) -> Result<Answer, Problem> {
    let origin = headers.get(ORIGIN).ok_or_else(|| Problem::bad_request(None))?;
    let method = headers
        .get(ACCESS_CONTROL_REQUEST_METHOD)
        .ok_or_else(|| Problem::bad_request(None))?;
    if !methods.iter().any(|known| known.as_bytes() == method.as_bytes()) {
        return Err(Problem::bad_request(None));
    }
    let mut answer = empty(StatusCode::OK);
    answer
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    answer
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    if let Some(requested) = headers
        .get(ACCESS_CONTROL_REQUEST_HEADERS)
        .and_then(|value| value.to_str().ok())
    {
        let names: Vec<String> = requested
            .split(',')
            .map(|name| name.trim().to_ascii_uppercase())
            .filter(|name| !name.is_empty())
            .collect();
        if let Ok(names) = HeaderValue::from_str(&names.join(",")) {
            answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
    }
    Ok(answer)
}

/// Adds what a script of another origin needs to read an actual answer.
pub(crate) fn expose(origin: &HeaderValue, answer: &mut Answer) {
    let headers = answer.headers_mut();
    if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let names: Vec<&str> = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| !SIMPLE_HEADERS.contains(name))
        .collect();
    if let Ok(names) = HeaderValue::from_str(&names.join(",")) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
}
