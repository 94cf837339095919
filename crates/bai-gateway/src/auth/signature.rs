//! The signature of a request (`http-api.md` 3.4 to 3.7). Pure: the same inputs always give the same verdict.
//!
//! Not here: whether the date is near enough and the keypair active.

use bai_core::Error;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HOST};
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use super::date::RequestDate;
use crate::version;

/// From this version on, compared as text, signatures do not cover the body.
pub(crate) const BODY_IS_NOT_HASHED_SINCE: &str = "v4.20181215";

/// The hash of `signMethod`. MD5 and the exotic ones of the original are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    /// Parses `HMAC-<hash>`, in any case.
    ///
    /// # Errors
    /// As `http-api.md` 3.7 says: 401 without exactly one dash, 400 for an unknown MAC or hash.
    pub fn parse(sign_method: &str) -> Result<Self, Error> {
        let (mac, hash) = sign_method
            .split_once('-')
            .filter(|(_, hash)| !hash.contains('-'))
            .ok_or_else(|| Error::Unauthorized(Some("Invalid signature".to_owned())))?;
        let unsupported = |what: &str| {
            Error::InvalidAuthParameters(format!("Unsupported request signing method ({what} type)"))
        };
        if !mac.eq_ignore_ascii_case("hmac") {
            return Err(unsupported("MAC"));
        }
        match hash.to_ascii_lowercase().as_str() {
            "sha1" => Ok(Self::Sha1),
            "sha224" => Ok(Self::Sha224),
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            _ => Err(unsupported("hash")),
        }
    }
}

/// A signature and all that it covers.
#[derive(Debug)]
pub struct Signed<'a> {
    pub algorithm: Algorithm,
    pub secret_key: &'a str,
    /// Lower-case hexadecimal.
    pub signature: &'a str,
    pub date: &'a RequestDate,
    pub method: &'a str,
    /// Path and query exactly as on the request line.
    pub target: &'a str,
    pub headers: &'a HeaderMap,
    /// The whole body where the version says that it is covered; ignored otherwise.
    pub body: &'a [u8],
}

/// Whether the signature holds. Takes the same time wherever it differs.
pub fn verify(signed: &Signed<'_>) -> bool {
    let expected = sign(signed);
    expected.as_bytes().ct_eq(signed.signature.as_bytes()).into()
}

/// The signature that the request should have.
pub fn sign(signed: &Signed<'_>) -> String {
    macro_rules! with {
        ($hash:ty) => {{
            let mac = |key: &[u8], message: &[u8]| {
                // HMAC takes keys of any length.
                let mut mac = <Hmac<$hash> as KeyInit>::new_from_slice(key).ok()?;
                mac.update(message);
                Some(mac.finalize().into_bytes())
            };
            let body_hash = hex::encode(<$hash>::digest(covered_body(signed)));
            let host = header(signed.headers, HOST.as_str());
            mac(signed.secret_key.as_bytes(), signed.date.key_date().as_bytes())
                .and_then(|key| mac(&key, host.as_bytes()))
                .and_then(|key| mac(&key, string_to_sign(signed, host, &body_hash).as_bytes()))
                .map(hex::encode)
                .unwrap_or_default()
        }};
    }
    match signed.algorithm {
        Algorithm::Sha1 => with!(Sha1),
        Algorithm::Sha224 => with!(Sha224),
        Algorithm::Sha256 => with!(Sha256),
        Algorithm::Sha384 => with!(Sha384),
        Algorithm::Sha512 => with!(Sha512),
    }
}

fn string_to_sign(signed: &Signed<'_>, host: &str, body_hash: &str) -> String {
    // The line is named after the header that is there, even if it is empty (3.4).
    let name = if signed.headers.contains_key("x-backendai-version") {
        "backendai"
    } else {
        "sorna"
    };
    format!(
        "{}\n{}\n{}\nhost:{host}\ncontent-type:{}\nx-{name}-version:{}\n{body_hash}",
        signed.method,
        signed.target,
        signed.date.raw(),
        content_type(signed.headers),
        version::announced(signed.headers).unwrap_or_default(),
    )
}

fn covered_body<'a>(signed: &Signed<'a>) -> &'a [u8] {
    let is_covered = version::announced(signed.headers).unwrap_or_default() < BODY_IS_NOT_HASHED_SINCE;
    if is_covered && content_type(signed.headers) != "multipart/form-data" {
        signed.body
    } else {
        b""
    }
}

/// The media type without parameters, case preserved (3.6).
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    match headers.get(CONTENT_TYPE) {
        Some(value) => value
            .to_str()
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim(),
        None => "application/octet-stream",
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;
    use crate::auth::date;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    struct Vector {
        method: &'static str,
        target: &'static str,
        date: &'static str,
        headers: &'static [(&'static str, &'static str)],
        body: &'static [u8],
        algorithm: &'static str,
        signature: &'static str,
    }

    /// `http-api.md` 3.11.
    const VECTORS: &[Vector] = &[
        Vector {
            method: "GET",
            target: "/kernel/my-session-01",
            date: "2019-07-15T12:34:56.789012+00:00",
            headers: &[
                ("host", "api.example.com"),
                ("content-type", "text/plain"),
                ("x-backendai-version", "v4.20190315"),
            ],
            body: b"",
            algorithm: "HMAC-SHA256",
            signature: "9dc296c53f85d0210cc07530f2b5fa5ab0ae90e77f9589892226154f5d2b2f31",
        },
        Vector {
            method: "POST",
            target: "/kernel/create",
            date: "2019-07-15T12:34:56.789012+00:00",
            headers: &[
                ("host", "127.0.0.1:8081"),
                ("content-type", "application/json"),
                ("x-backendai-version", "v4.20190615"),
            ],
            body: b"{\"not\": \"covered\"}",
            algorithm: "HMAC-SHA256",
            signature: "c3df88d33e46897c0415e8d3809399963c65e728ece027c8779c16fa1aa396f3",
        },
        Vector {
            method: "POST",
            target: "/v3/kernel/my-session-01",
            date: "2019-07-15T12:34:56+00:00",
            headers: &[
                ("host", "127.0.0.1:8081"),
                ("content-type", "application/json"),
                ("x-backendai-version", "v3.20170615"),
            ],
            body: br#"{"mode": "query", "code": "print(1)", "runId": null}"#,
            algorithm: "HMAC-SHA256",
            signature: "8eab0e244e205423d36f5910e0c6950849972176b836e1a663b893827ccac730",
        },
        Vector {
            method: "GET",
            target: "/v2/kernel/my-session-01?owner_access_key=AKIANABBDUSEREXAMPLE",
            date: "20190715T123456Z",
            headers: &[
                ("host", "your.sorna.api.endpoint"),
                ("content-type", "application/json"),
                ("x-sorna-version", "v2.20170315"),
            ],
            body: b"",
            algorithm: "hmac-sha256",
            signature: "db535e007bf38642716290919070de21fdc22083faee4faa58c4609fd19bd460",
        },
        Vector {
            method: "POST",
            target: "/folders/mydata/upload",
            date: "2019-07-15T12:34:56.789012+00:00",
            headers: &[
                ("host", "127.0.0.1:8081"),
                ("content-type", "multipart/form-data; boundary=xyz"),
                ("x-backendai-version", "v4.20190315"),
            ],
            body: b"",
            algorithm: "HMAC-SHA256",
            signature: "cd97348f016302808dcf2317c3a840184299c671485995d536a6b9dbbadc8c97",
        },
        Vector {
            method: "POST",
            target: "/v3/kernel/my-session-01/upload",
            date: "2019-07-15T12:34:56+00:00",
            headers: &[
                ("host", "127.0.0.1:8081"),
                ("content-type", "multipart/form-data; boundary=xyz"),
                ("x-backendai-version", "v3.20170615"),
            ],
            body: b"--xyz--",
            algorithm: "HMAC-SHA256",
            signature: "b5270405f87f207a0ba449c2595ac06735ba27dfa57e523748e1f4bcb71ed4d2",
        },
        Vector {
            method: "GET",
            target: "/stream/kernel/my-session-01/httpproxy?app=jupyter",
            date: "2019-07-16T01:04:05.678901+09:00",
            headers: &[("host", "[::1]:8081"), ("x-backendai-version", "v4.20190315")],
            body: b"",
            algorithm: "HMAC-SHA256",
            signature: "990afd8124ade21f60632a7f9efa17fe50afb9a6625d999aa37fe8c7cb0fc14a",
        },
        Vector {
            method: "GET",
            target: "/auth/test?echo=%EA%B0%80+b",
            date: "Mon, 15 Jul 2019 12:34:56 GMT",
            headers: &[
                ("host", "API.Example.com:8443"),
                ("x-backendai-version", "v4.20181215"),
            ],
            body: b"",
            algorithm: "HMAC-SHA1",
            signature: "80ddb8bf3a346481ad72b177e60032529dd715fb",
        },
        Vector {
            method: "POST",
            target: "/v3/auth/test",
            date: "2019-07-15T12:34:56+00:00",
            headers: &[
                ("host", "localhost:8081"),
                ("content-type", "application/json"),
                ("x-backendai-version", "v3.20170615"),
            ],
            body: br#"{"echo": "hello!"}"#,
            algorithm: "HMAC-SHA512",
            signature: "f3ef39266acdfbd8d9a52d843f79d044f011b340f9ea042783faf887e7e5dc8f05d4c593c4fa0031d4eec1614b27846937d512e9afdaaa22b367865e658f7bb7",
        },
        Vector {
            method: "GET",
            target: "/v2",
            date: "20160930T01:23:45Z",
            headers: &[
                ("host", "your.sorna.api.endpoint"),
                ("content-type", "application/json"),
                ("x-sorna-version", "v2.20170215"),
            ],
            body: b"",
            algorithm: "HMAC-SHA256",
            signature: "ca177162e332893e70743f6612ffe2cfad8b1a036bcfddf4a83f4897459be757",
        },
    ];

    #[test]
    fn the_documented_vectors_verify_and_nothing_else_does() {
        for vector in VECTORS {
            let mut headers = HeaderMap::new();
            for (name, value) in vector.headers {
                headers.insert(*name, value.parse().expect("a header value"));
            }
            let date = date::parse(vector.date, NaiveDate::MIN).expect("a date");
            let signed = Signed {
                algorithm: Algorithm::parse(vector.algorithm).expect("a known algorithm"),
                secret_key: SECRET,
                signature: vector.signature,
                date: &date,
                method: vector.method,
                target: vector.target,
                headers: &headers,
                body: vector.body,
            };
            assert!(verify(&signed), "{} {}", vector.method, vector.target);
            assert!(!verify(&Signed {
                secret_key: "another",
                ..signed
            }));
            let tampered = format!("{}x", vector.target);
            assert!(!verify(&Signed {
                target: &tampered,
                ..signed
            }));
            let upper = vector.signature.to_ascii_uppercase();
            assert!(!verify(&Signed {
                signature: &upper,
                ..signed
            }));
            assert!(!verify(&Signed {
                signature: &vector.signature[..10],
                ..signed
            }));
        }
    }

    impl Copy for Signed<'_> {}
    impl Clone for Signed<'_> {
        fn clone(&self) -> Self {
            *self
        }
    }

    #[test]
    fn weak_and_unknown_algorithms_are_refused() {
        assert!(matches!(
            Algorithm::parse("HMAC-MD5"),
            Err(Error::InvalidAuthParameters(_))
        ));
        assert!(matches!(
            Algorithm::parse("HMAC-shake_128"),
            Err(Error::InvalidAuthParameters(_))
        ));
        assert!(matches!(
            Algorithm::parse("RSA-SHA256"),
            Err(Error::InvalidAuthParameters(_))
        ));
        assert!(matches!(
            Algorithm::parse("HMAC-SHA-256"),
            Err(Error::Unauthorized(Some(_)))
        ));
        assert!(matches!(
            Algorithm::parse("HMACSHA256"),
            Err(Error::Unauthorized(Some(_)))
        ));
    }
}
