//! The `Authorization` header (`http-api.md` 3.2):
//! `BackendAI signMethod=HMAC-SHA256, credential=<access key>:<signature>`.

use bai_core::Error;

/// The parts that matter; further parameters are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorization<'a> {
    pub sign_method: &'a str,
    pub access_key: &'a str,
    pub signature: &'a str,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("Malformed authorization header")]
    Malformed,
    #[error("Invalid authorization type name")]
    WrongType,
    #[error("Missing or malformed authorization parameters")]
    MissingParameters,
}

impl ParseError {
    pub(crate) fn into_core(self) -> Error {
        Error::InvalidAuthParameters(self.to_string())
    }
}

/// Parses the header's text; never panics.
pub fn parse(header: &str) -> Result<Authorization<'_>, ParseError> {
    let (scheme, parameters) = header.split_once(' ').ok_or(ParseError::Malformed)?;
    if !matches!(scheme, "BackendAI" | "Sorna") {
        return Err(ParseError::WrongType);
    }
    let mut sign_method = None;
    let mut credential = None;
    for parameter in parameters.split(',') {
        let (key, value) = parameter.split_once('=').ok_or(ParseError::MissingParameters)?;
        match key.trim() {
            "signMethod" => sign_method = Some(value.trim()),
            "credential" => credential = Some(value.trim()),
            _ => {}
        }
    }
    let (access_key, signature) = credential
        .and_then(|credential| credential.split_once(':'))
        .ok_or(ParseError::MissingParameters)?;
    Ok(Authorization {
        sign_method: sign_method.ok_or(ParseError::MissingParameters)?,
        access_key,
        signature,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_schemes_any_order_any_blanks() {
        let expected = Authorization {
            sign_method: "HMAC-SHA256",
            access_key: "AK",
            signature: "ab:c",
        };
        for header in [
            "BackendAI signMethod=HMAC-SHA256, credential=AK:ab:c",
            "Sorna credential = AK:ab:c ,signMethod= HMAC-SHA256,more=1",
        ] {
            assert_eq!(parse(header), Ok(expected), "{header}");
        }
    }

    #[test]
    fn failures_say_what_is_wrong() {
        for (header, error) in [
            ("x", ParseError::Malformed),
            ("Basic abc", ParseError::WrongType),
            ("backendai signMethod=x, credential=a:b", ParseError::WrongType),
            ("BackendAI ", ParseError::MissingParameters),
            ("BackendAI signMethod=HMAC-SHA256", ParseError::MissingParameters),
            (
                "BackendAI signMethod=HMAC-SHA256, credential=ab",
                ParseError::MissingParameters,
            ),
            (
                "BackendAI signMethod=HMAC-SHA256, credential",
                ParseError::MissingParameters,
            ),
        ] {
            assert_eq!(parse(header), Err(error), "{header}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(header in ".*") {
            _ = parse(&header);
        }
    }
}
