//! Permission to ask: none needed, Basic, or a token of the server that the registry names (`http-api.md` 5.10, step 2).

use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::http::{Answer, Http, Question};
use crate::{Address, Cause};

/// Bytes of an answer that is only about permission.
const LIMIT: usize = 256 * 1024;

/// How a registry wants to be asked.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    /// Like this, always.
    Fixed(Option<HeaderValue>),
    /// With a token for each scope.
    Token {
        realm: Url,
        service: String,
        basic: Option<HeaderValue>,
    },
}

impl Login {
    /// Finds out.
    pub async fn find(http: &Http, base: &Url, address: &Address) -> Result<Self, Cause> {
        let basic = address.credentials().map(basic).transpose()?;
        let url = base
            .join("v2/")
            .map_err(|error| Cause::malformed(error.to_string()))?;
        let question = Question {
            url,
            accept: "application/json",
            what: "the greeting",
            limit: LIMIT,
        };
        let answer = http.get(&question, basic.as_ref()).await?;
        match answer.status {
            StatusCode::OK => Ok(Self::Fixed(basic)),
            StatusCode::UNAUTHORIZED => Self::challenged(&answer, base, basic),
            StatusCode::NOT_FOUND => Err(Cause::Unsupported(
                "does not speak the registry API, version 2; see its URL".to_owned(),
            )),
            status => Err(Cause::Status(status.as_u16())),
        }
    }

    fn challenged(answer: &Answer, base: &Url, basic: Option<HeaderValue>) -> Result<Self, Cause> {
        let challenges = answer.headers.get_all(WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(bearer);
        let Some(challenge) = challenge else {
            return Err(Cause::Unauthorized);
        };
        let realm = match challenge.realm {
            Some(realm) => Url::parse(&realm)
                .map_err(|error| Cause::malformed(format!("names a token server that is no URL: {error}")))?,
            None => base
                .join("token")
                .map_err(|error| Cause::malformed(error.to_string()))?,
        };
        if !(realm.scheme() == "https" || realm.scheme() == "http" && base.scheme() == "http") {
            return Err(Cause::Unsupported(
                "names a token server without encryption, which would get the credentials".to_owned(),
            ));
        }
        let service = challenge.service.unwrap_or_else(|| "registry".to_owned());
        Ok(Self::Token {
            realm,
            service,
            basic,
        })
    }

    async fn header(&self, http: &Http, scope: &str) -> Result<Option<HeaderValue>, Cause> {
        let Self::Token {
            realm,
            service,
            basic,
        } = self
        else {
            let Self::Fixed(header) = self else {
                return Ok(None);
            };
            return Ok(header.clone());
        };
        let mut url = realm.clone();
        url.query_pairs_mut()
            .append_pair("scope", scope)
            .append_pair("offline_token", "true")
            .append_pair("client_id", "docker")
            .append_pair("service", service);
        let question = Question {
            url,
            accept: "application/json",
            what: "the token",
            limit: LIMIT,
        };
        let answer = http.get(&question, basic.as_ref()).await?.success()?;
        let token = serde_json::from_slice::<Token>(&answer.body)
            .ok()
            .and_then(|token| token.token.or(token.access_token))
            .ok_or_else(|| Cause::malformed("its token server sent no token"))?;
        Ok(Some(secret(&format!("Bearer {token}"))?))
    }
}

/// Permission for one scope. Renewed when the registry no longer takes it.
#[derive(Debug)]
pub(crate) struct Access {
    scope: String,
    header: Mutex<Option<HeaderValue>>,
}

impl Access {
    pub async fn new(http: &Http, login: &Login, scope: String) -> Result<Self, Cause> {
        let header = Mutex::new(login.header(http, &scope).await?);
        Ok(Self { scope, header })
    }

    /// Asks with this permission, and with a new token once when the registry says 401.
    pub async fn get(&self, http: &Http, login: &Login, question: &Question) -> Result<Answer, Cause> {
        let used = self.header.lock().await.clone();
        let answer = http.get(question, used.as_ref()).await?;
        if answer.status != StatusCode::UNAUTHORIZED || matches!(login, Login::Fixed(_)) {
            return Ok(answer);
        }
        let mut header = self.header.lock().await;
        if *header == used {
            *header = login.header(http, &self.scope).await?;
        }
        let renewed = header.clone();
        drop(header);
        http.get(question, renewed.as_ref()).await
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Parameters of a `WWW-Authenticate: Bearer` header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Challenge {
    realm: Option<String>,
    service: Option<String>,
}

/// The parameters, if the challenge is a Bearer one: `name="value"` or `name=value`, separated by commas.
fn bearer(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut challenge = Challenge::default();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']);
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.to_ascii_lowercase().as_str() {
            "realm" => challenge.realm = Some(value.to_owned()),
            "service" => challenge.service = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(challenge)
}

fn basic((username, password): (&str, &str)) -> Result<HeaderValue, Cause> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    secret(&format!("Basic {encoded}"))
}

/// A header that no log shows.
fn secret(text: &str) -> Result<HeaderValue, Cause> {
    let mut header = HeaderValue::from_str(text)
        .map_err(|_| Cause::malformed("sent a token that cannot be in a header"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_any_order_and_quoting() {
        let challenge = bearer(
            r#"Bearer realm="https://auth.example.com/token?a=b,c",service="reg.example.com",scope="x""#,
        );
        let challenge = challenge.unwrap();
        assert_eq!(
            challenge.realm.as_deref(),
            Some("https://auth.example.com/token?a=b,c")
        );
        assert_eq!(challenge.service.as_deref(), Some("reg.example.com"));
        let challenge = bearer("bearer Service=plain, realm=http://127.0.0.1/t").unwrap();
        assert_eq!(challenge.realm.as_deref(), Some("http://127.0.0.1/t"));
        assert_eq!(challenge.service.as_deref(), Some("plain"));
        assert_eq!(bearer("Bearer"), Some(Challenge::default()));
        assert_eq!(bearer(r#"Basic realm="x""#), None);
        assert!(bearer(r#"Bearer realm="open"#).is_some());
    }
}
