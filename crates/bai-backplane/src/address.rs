//! Addresses of services on the network: `scheme://[user][:password]@host[:port][,host[:port]…][?option=value&…]`.
//!
//! Invariants: user and password are percent-encoded, and neither is ever printed. An option that is not known is refused,
//! so that a misspelt one is not silently without effect.
//!
//! Not here: which options there are and what they mean.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::{Error, Result, Terminal};

/// The longest and shortest deadline that `timeout=` may set, in seconds.
const TIMEOUTS: std::ops::RangeInclusive<f64> = 0.05..=300.0;

/// A parsed address.
pub(crate) struct Address {
    pub user: Option<String>,
    pub password: Option<String>,
    /// At least one; IPv6 addresses without brackets.
    pub hosts: Vec<(String, u16)>,
    options: BTreeMap<String, String>,
}

impl Address {
    /// Parses what follows `scheme://`.
    ///
    /// # Errors
    /// [`Terminal::Address`], without the address itself: there may be a password in it.
    pub fn parse(scheme: &str, rest: &str, default_port: u16, known_options: &[&str]) -> Result<Self> {
        let wrong = |why: String| Error::from(Terminal::Address(format!("the {scheme}:// address {why}")));
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (credentials, place) = match place.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, place),
        };
        let (user, password) = match credentials.map(|pair| pair.split_once(':').unwrap_or((pair, ""))) {
            Some((user, password)) => (decoded(user), decoded(password)),
            None => (None, None),
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let hosts: Option<Vec<_>> = place
            .split(',')
            .map(|host| host_port(host, default_port))
            .collect();
        let hosts = hosts.ok_or_else(|| {
            wrong("needs hosts such as name:port or [::1]:port, separated by commas, and no path".to_owned())
        })?;
        let mut options = BTreeMap::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if !known_options.contains(&name) {
                let known = known_options.join(", ");
                return Err(wrong(format!(
                    "has an unknown option {name:?}; known are {known}"
                )));
            }
            options.insert(name.to_owned(), decoded(value).unwrap_or_default());
        }
        Ok(Self {
            user,
            password,
            hosts,
            options,
        })
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The deadline of every call: `timeout=` in seconds.
    pub fn timeout(&self, default: Duration) -> Result<Duration> {
        let Some(text) = self.option("timeout") else {
            return Ok(default);
        };
        match text.parse::<f64>() {
            Ok(seconds) if TIMEOUTS.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
            _ => Err(Terminal::Address(format!(
                "timeout={text} is not a number of seconds from {} to {}",
                TIMEOUTS.start(),
                TIMEOUTS.end()
            ))
            .into()),
        }
    }

    /// The certificates in the file that `ca=` names, in PEM.
    pub fn authority(&self) -> Result<Option<Vec<u8>>> {
        let read = |path| {
            std::fs::read(path).map_err(|error| {
                Terminal::Address(format!("cannot read the certificates in ca={path}: {error}")).into()
            })
        };
        self.option("ca").map(read).transpose()
    }

    /// The hosts as they are printed.
    pub fn printed(&self) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| joined(host, *port))
            .collect();
        hosts.join(",")
    }
}

/// `host:port`, with brackets around IPv6.
pub(crate) fn joined(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Nothing for the empty text: an empty user or password is none (`http-api.md` 5.1).
fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

fn host_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']')?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
        }
        None => match text.split_once(':') {
            Some((host, port)) if !port.is_empty() => (host, port),
            Some(_) => return None,
            None => (text, ""),
        },
    };
    let port = match port {
        "" => default_port,
        digits => digits.parse().ok().filter(|port| *port > 0)?,
    };
    let plain = !host.is_empty() && !host.contains(['/', '#', ' ', '[', ']']);
    plain.then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Address> {
        Address::parse("etcd", rest, 2379, &["tls", "timeout"])
    }

    #[test]
    fn every_part_is_found() {
        let address =
            parse("us%3Aer:p%40ss@one:1,two,[::1]:3,[fe80::1]/?tls=true&timeout=0.5").expect("parses");
        assert_eq!(address.user.as_deref(), Some("us:er"));
        assert_eq!(address.password.as_deref(), Some("p@ss"));
        assert_eq!(address.printed(), "one:1,two:2379,[::1]:3,[fe80::1]:2379");
        assert_eq!(address.option("tls"), Some("true"));
        assert_eq!(
            address.timeout(Duration::from_secs(9)),
            Ok(Duration::from_millis(500))
        );
        let address = parse(":secret@one").expect("parses");
        assert_eq!(
            (address.user, address.password.as_deref()),
            (None, Some("secret"))
        );
        let address = parse("one").expect("parses");
        assert_eq!((address.user, address.password), (None, None));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let wrong = [
            "",
            "u:secret@",
            "u:secret@one:",
            "u:secret@one:0",
            "u:secret@one:70000",
            "u:secret@one,,two",
            "u:secret@one/path",
            "u:secret@::1",
            "u:secret@[::1",
            "u:secret@[::1]x",
            "u:secret@one?tsl=true",
        ];
        for rest in wrong {
            let error = parse(rest).err().expect(rest);
            assert!(matches!(error, Error::Terminal(Terminal::Address(_))), "{rest}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for timeout in ["0", "-1", "soon", "NaN", "1e9", ""] {
            let address = parse(&format!("one?timeout={timeout}")).expect("parses");
            assert!(address.timeout(Duration::from_secs(1)).is_err(), "{timeout}");
        }
    }
}
