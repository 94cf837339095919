//! Who sent a request: the signature check, in the order of `http-api.md` 3.9.

pub mod authorization;
pub mod date;
pub mod signature;

use bai_core::{Credential, Error};
use bai_model::AccessKey;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::request::Parts;

use crate::Gateway;
use crate::error::Problem;
use crate::version;

/// How far a request's date may be from the server's clock, either way.
const DATE_WINDOW: TimeDelta = TimeDelta::minutes(15);

/// What can be said of a request before its body is needed.
pub(crate) struct Claim {
    credential: Credential,
    algorithm: signature::Algorithm,
    signature: String,
    date: date::RequestDate,
}

impl Claim {
    /// Whether the signature covers the body (`http-api.md` 3.5).
    pub(crate) fn needs_body(&self, parts: &Parts) -> bool {
        version::announced(&parts.headers)
            .is_some_and(|version| version < signature::BODY_IS_NOT_HASHED_SINCE)
            && signature::content_type(&parts.headers) != "multipart/form-data"
    }

    /// The requester, if the signature holds. A wrong signature is no error here: the role gate answers (3.9).
    pub(crate) fn verify(
        self,
        parts: &Parts,
        body: Option<&Bytes>,
    ) -> Option<std::sync::Arc<bai_core::Identity>> {
        let holds = signature::verify(&signature::Signed {
            algorithm: self.algorithm,
            secret_key: self.credential.secret_key.expose(),
            signature: &self.signature,
            date: &self.date,
            method: parts.method.as_str(),
            target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
            headers: &parts.headers,
            body: body.map(Bytes::as_ref).unwrap_or_default(),
        });
        holds.then_some(self.credential.identity)
    }
}

impl Gateway {
    /// Reads the date and the `Authorization` header and finds the keypair. `None` for an unsigned request.
    pub(crate) async fn claim(&self, parts: &Parts, now: DateTime<Utc>) -> Result<Option<Claim>, Problem> {
        let out_of_sync = || Error::InvalidAuthParameters("Date/time sync error".to_owned());
        let raw_date = date::header(&parts.headers).ok_or_else(out_of_sync)?;
        let date = date::parse(raw_date, now.date_naive()).ok_or_else(out_of_sync)?;
        if (date.instant() - now).abs() > DATE_WINDOW {
            return Err(out_of_sync().into());
        }
        let Some(header) = parts
            .headers
            .get(http::header::AUTHORIZATION)
            .filter(|header| !header.is_empty())
        else {
            return Ok(None);
        };
        let header = header
            .to_str()
            .map_err(|_| authorization::ParseError::Malformed.into_core())?;
        let authorization = authorization::parse(header).map_err(authorization::ParseError::into_core)?;
        let access_key = AccessKey(authorization.access_key.to_owned());
        let credential = self.manager.credential(&access_key).await?;
        let credential =
            credential.ok_or_else(|| Error::Unauthorized(Some("Access key not found".to_owned())))?;
        if version::announced(&parts.headers).is_none() {
            let text = "API version missing in request headers";
            return Err(Error::InvalidAuthParameters(text.to_owned()).into());
        }
        let algorithm = signature::Algorithm::parse(authorization.sign_method)?;
        Ok(Some(Claim {
            credential,
            algorithm,
            signature: authorization.signature.to_owned(),
            date,
        }))
    }
}
