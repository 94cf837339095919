//! API version negotiation (`http-api.md` 1.5).

use http::HeaderMap;

use crate::error::Problem;

/// The version that `GET /` announces. Clients compare it as text (`clients.md` 1, rule 2).
pub(crate) const LATEST: &str = "v4.20190615";

/// The header values that are accepted, with their majors.
const ACCEPTED: [(&str, Major); 7] = [
    ("v1.20160915", Major::V1),
    ("v2.20170315", Major::V2),
    ("v3.20170615", Major::V3),
    ("v4.20181215", Major::V4),
    ("v4.20190115", Major::V4),
    ("v4.20190315", Major::V4),
    (LATEST, Major::V4),
];

/// A major version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Major {
    V1,
    V2,
    V3,
    V4,
}

impl Major {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::V1, Self::V2, Self::V3, Self::V4]
            .into_iter()
            .find(|major| major.number() == number)
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

/// The version text of a request: the new header unless it is absent or empty, else the old one. One that is not ASCII
/// is no version that anybody knows.
pub(crate) fn announced(headers: &HeaderMap) -> Option<&str> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or("(not ASCII)"))
            .filter(|text| !text.is_empty())
    };
    text("x-backendai-version").or_else(|| text("x-sorna-version"))
}

/// The major version in force: the path's, else the header's, else the latest.
pub(crate) fn negotiate(headers: &HeaderMap, legacy: Option<Major>) -> Result<Major, Problem> {
    let from_header = match announced(headers) {
        None => Major::V4,
        Some(text) => {
            let known = ACCEPTED.iter().find(|(accepted, _)| *accepted == text);
            known
                .ok_or_else(|| Problem::bad_request(Some("Unsupported API major version.")))?
                .1
        }
    };
    Ok(legacy.unwrap_or(from_header))
}
