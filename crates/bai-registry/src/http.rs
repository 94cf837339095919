//! One question to one server: deadline, size limit, redirects, another try.

use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use reqwest::header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, StatusCode, Url};
use tokio::sync::Semaphore;

use crate::{Cause, Options, Trust};

/// Requests to one registry that are under way at once.
pub const MAX_REQUESTS: usize = 16;
/// Redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// The longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A whole answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What was asked, before redirects.
    pub url: Url,
    pub body: Bytes,
}

impl Answer {
    /// The answer, if it has status 200.
    pub fn success(self) -> Result<Self, Cause> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Cause::Unauthorized),
            status => Err(Cause::Status(status.as_u16())),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub url: Url,
    pub accept: &'static str,
    /// What the answer is, for the message when it is too large.
    pub what: &'static str,
    /// Bytes that the answer may have.
    pub limit: usize,
}

#[derive(Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    slots: Semaphore,
    attempts: u32,
    backoff: Duration,
}

impl Http {
    /// A client for the registry at `base`.
    pub fn new(options: &Options, base: &Url) -> Result<Self, Cause> {
        // Another client of this process may have installed it.
        _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .no_proxy()
                .connect_timeout(CONNECT_DEADLINE)
                .timeout(options.deadline)
                .redirect(Policy::custom(redirect))
                .user_agent(concat!("bai/", env!("CARGO_PKG_VERSION")))
        };
        let unusable = |error: reqwest::Error| {
            Cause::Settings(format!(
                "TLS cannot be set up: {}; see the certificates of this machine and the docker-registry settings",
                chain(&error)
            ))
        };
        let client = match &options.trust {
            Trust::Anybody => builder().tls_danger_accept_invalid_certs(true).build(),
            Trust::SystemAnd(pem) => {
                let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(unusable)?;
                if certificates.is_empty() {
                    return Err(Cause::Settings(
                        "the file of its authorities holds no certificate in PEM".to_owned(),
                    ));
                }
                // A machine without authorities of its own still has these.
                builder()
                    .tls_certs_merge(certificates.clone())
                    .build()
                    .or_else(|_| builder().tls_certs_only(certificates).build())
            }
            Trust::System => builder().build(),
        };
        let client = match client {
            Ok(client) => client,
            // Nobody needs to be believed for this one.
            Err(_) if base.scheme() == "http" => builder().tls_certs_only([]).build().map_err(unusable)?,
            Err(error) => return Err(unusable(error)),
        };
        Ok(Self {
            client,
            slots: Semaphore::new(MAX_REQUESTS),
            attempts: options.attempts.max(1),
            backoff: options.backoff,
        })
    }

    /// Asks until there is an answer that will not change by asking again.
    pub async fn get(
        &self,
        question: &Question,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Cause> {
        let mut wait = self.backoff;
        for attempt in 1.. {
            let (cause, asked) = match self.attempt(question, authorization).await {
                Ok(answer) => {
                    let cause = Cause::Status(answer.status.as_u16());
                    if !cause.passes() {
                        return Ok(answer);
                    }
                    (cause, retry_after(&answer.headers))
                }
                Err(cause) => (cause, None),
            };
            if !cause.passes() || attempt >= self.attempts {
                return Err(cause);
            }
            let pause = asked.unwrap_or(wait);
            if pause > MAX_WAIT {
                return Err(Cause::Busy(pause.as_secs()));
            }
            tracing::debug!(url = %question.url, %cause, attempt, "asking a registry again");
            tokio::time::sleep(pause).await;
            wait = wait.saturating_mul(2).min(MAX_WAIT);
        }
        Err(Cause::TimedOut)
    }

    async fn attempt(
        &self,
        question: &Question,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Cause> {
        let _slot = self.slots.acquire().await;
        let Question {
            url,
            accept,
            what,
            limit,
        } = question;
        let mut request = self.client.get(url.clone()).header(ACCEPT, *accept);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let mut response = request.send().await.map_err(transport)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > *limit {
                return Err(Cause::TooLarge { what, limit: *limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status: response.status(),
            headers: response.headers().clone(),
            url: url.clone(),
            body: body.into(),
        })
    }
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    match check_redirect(attempt.previous(), attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(reason) => attempt.error(reason),
    }
}

/// Whether to go on to `next`. That credentials do not go to another host, port or scheme is the library's rule; that
/// nothing goes from an encrypted connection to an open one is ours.
fn check_redirect(previous: &[Url], next: &Url) -> Result<(), &'static str> {
    let was_secure = previous.last().is_some_and(|url| url.scheme() == "https");
    if previous.len() > MAX_REDIRECTS {
        Err("too many redirects")
    } else if was_secure && next.scheme() != "https" {
        Err("redirects from https to an open connection")
    } else {
        Ok(())
    }
}

fn transport(error: reqwest::Error) -> Cause {
    if error.is_redirect() {
        Cause::malformed(chain(&error))
    } else if error.is_timeout() {
        Cause::TimedOut
    } else {
        Cause::Unreachable(chain(&error))
    }
}

/// The innermost cause, which is the one that says something. URLs may hold tokens of a redirect's target.
fn chain(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Seconds, or a date, which counts from the server's own.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(text).ok()?;
    let now = DateTime::parse_from_rfc2822(headers.get(DATE)?.to_str().ok()?).ok()?;
    (until - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_leave_encryption() {
        let url = |text: &str| Url::parse(text).unwrap();
        let check = |previous: &str, next: &str| check_redirect(&[url(previous)], &url(next));
        assert!(check("https://a/", "https://b/").is_ok());
        assert!(check("http://a/", "https://b/").is_ok());
        assert!(check("http://a/", "http://b/").is_ok());
        assert!(check("https://a/", "http://a/").is_err());
    }

    #[test]
    fn authorities_without_a_certificate_are_refused() {
        let options = Options {
            trust: Trust::SystemAnd("nothing".to_owned()),
            ..Options::default()
        };
        let base = Url::parse("https://a/").unwrap();
        assert!(matches!(Http::new(&options, &base), Err(Cause::Settings(_))));
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let wait = |after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            retry_after(&headers)
        };
        let now = Some("Mon, 15 Jul 2019 12:00:00 GMT");
        assert_eq!(wait("7", None), Some(Duration::from_secs(7)));
        assert_eq!(
            wait("Mon, 15 Jul 2019 12:00:09 GMT", now),
            Some(Duration::from_secs(9))
        );
        assert_eq!(wait("Mon, 15 Jul 2019 11:00:00 GMT", now), None);
        assert_eq!(wait("Mon, 15 Jul 2019 12:00:09 GMT", None), None);
        assert_eq!(wait("soon", now), None);
    }
}
