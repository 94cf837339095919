//! What a value of the file or of the environment may look like: a reader for each kind, which says what it wanted.

use std::fmt;
use std::path::PathBuf;

use bai_model::BinarySize;
use bai_proto::zmtp::AllowList;
use serde::{Serialize, Serializer};
use toml::Value;

use super::secret::{Address, Secret};

/// Either a value or what would have been one.
pub(super) type Read<T> = Result<T, String>;

/// A host name or address with a port. IPv6 addresses are kept without brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl HostPort {
    /// `host:port` or `[v6]:port`.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let is_named = !host.is_empty() && !host.contains(char::is_whitespace);
        // An address of IPv6 must say where it ends.
        if !is_named || (bracketed.is_none() && host.contains(':')) {
            return None;
        }
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let host = host.to_owned();
        Some(Self { host, port })
    }
}

/// What a value is, without what it says: there may be a secret in it.
fn kind(value: &Value) -> String {
    format!("a TOML {}", value.type_str())
}

pub(super) fn text(value: &Value) -> Read<String> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        Value::String(_) => Err("must not be empty".to_owned()),
        other => Err(format!("must be a text in quotes, not {}", kind(other))),
    }
}

pub(super) fn text_or_blank(value: &Value) -> Read<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("must be a text in quotes, not {}", kind(other))),
    }
}

pub(super) fn secret(value: &Value) -> Read<Secret> {
    text(value).map(Secret::new)
}

pub(super) fn secret_or_blank(value: &Value) -> Read<Secret> {
    text_or_blank(value).map(Secret::new)
}

pub(super) fn path(value: &Value) -> Read<PathBuf> {
    text(value).map(PathBuf::from)
}

pub(super) fn existing_file(value: &Value) -> Read<PathBuf> {
    let path = path(value)?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("there is no file {}", path.display()))
    }
}

pub(super) fn absolute_path(value: &Value) -> Read<PathBuf> {
    let path = path(value)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!(
            "{} must be a path from the root, such as /var/lib/bai",
            path.display()
        ))
    }
}

/// `"host:port"`, `["host", port]` or `{ host = "…", port = n }`.
pub(super) fn host_port(value: &Value) -> Read<HostPort> {
    let wanted = || "must be host and port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned();
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(pair) => match &pair[..] {
            [host, port] => together(host, port).ok_or_else(wanted)?,
            _ => return Err(wanted()),
        },
        Value::Table(table) => match (table.get("host"), table.get("port")) {
            (Some(host), Some(port)) => together(host, port).ok_or_else(wanted)?,
            (None, _) => return Err("lacks its host".to_owned()),
            (_, None) => return Err("lacks its port".to_owned()),
        },
        _ => return Err(wanted()),
    };
    HostPort::parse(&text).ok_or_else(|| format!("{}; it is {text:?}", wanted()))
}

fn together(host: &Value, port: &Value) -> Option<String> {
    let host = host.as_str()?;
    let port = match port {
        Value::Integer(port) => port.to_string(),
        Value::String(port) => port.clone(),
        _ => return None,
    };
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    Some(format!("{host}:{port}"))
}

/// A boolean, or one of the words for it.
pub(super) fn boolean(value: &Value) -> Read<bool> {
    let wanted = || "must be true or false".to_owned();
    match value {
        Value::Boolean(value) => Ok(*value),
        Value::Integer(0) => Ok(false),
        Value::Integer(1) => Ok(true),
        Value::String(text) => match text.to_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
            _ => Err(format!("{}; it is {text:?}", wanted())),
        },
        _ => Err(wanted()),
    }
}

/// A whole number, also in quotes, as the environment has them.
pub(super) fn integer(value: &Value) -> Read<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .ok_or_else(|| format!("must be a whole number; it is {value}"))
}

pub(super) fn integer_in(range: std::ops::RangeInclusive<i64>) -> impl Fn(&Value) -> Read<i64> {
    move |value| {
        let number = integer(value)?;
        if range.contains(&number) {
            Ok(number)
        } else {
            let (from, to) = (range.start(), range.end());
            Err(format!("must be from {from} to {to}; it is {number}"))
        }
    }
}

/// Seconds, at least `least`.
pub(super) fn seconds(least: f64) -> impl Fn(&Value) -> Read<f64> {
    /// A century: more than that is a mistake, and more than durations hold.
    const MOST: f64 = 3e9;
    move |value| {
        let number = match value {
            #[expect(clippy::cast_precision_loss, reason = "as the original reads it")]
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (least..=MOST).contains(&number) => Ok(number),
            _ => Err(format!(
                "must be a number of seconds, at least {least}; it is {value}"
            )),
        }
    }
}

/// Bytes: a number, or one with a suffix such as `10M`.
pub(super) fn binary_size(value: &Value) -> Read<u64> {
    let bytes = binary_size_or_zero(value)?;
    if bytes > 0 {
        Ok(bytes)
    } else {
        Err(format!("must be a size such as \"10M\"; it is {value}"))
    }
}

/// As [`binary_size`], or nothing.
pub(super) fn binary_size_or_zero(value: &Value) -> Read<u64> {
    let wanted = || format!("must be a size such as \"10M\"; it is {value}");
    let bytes = match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok(),
        Value::String(text) => match BinarySize::parse(text) {
            Ok(BinarySize::Bytes(bytes)) => u64::try_from(bytes).ok(),
            _ => None,
        },
        _ => None,
    };
    bytes.ok_or_else(wanted)
}

/// What names may look like (`^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$`), of so many characters.
pub(super) fn slug(length: std::ops::RangeInclusive<usize>) -> impl Fn(&Value) -> Read<String> {
    move |value| {
        let name = text(value)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric();
        let is_slug = name.starts_with(is_plain)
            && name.ends_with(is_plain)
            && name.chars().all(|c| is_plain(c) || "._-".contains(c));
        if is_slug && length.contains(&name.len()) {
            return Ok(name);
        }
        Err(format!(
            "must be {} to {} letters, digits, `.`, `_` or `-`, with a letter or digit at both ends; it is {name:?}",
            length.start(),
            length.end()
        ))
    }
}

/// One of these words.
pub(super) fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Read<T> {
    move |value| {
        let word = text(value)?;
        let found = words.iter().find(|(known, _)| *known == word);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("must be one of {}; it is {word:?}", known.join(", "))
        })
    }
}

/// A list, each entry read alike.
pub(super) fn list<T>(entry: impl Fn(&Value) -> Read<T>) -> impl Fn(&Value) -> Read<Vec<T>> {
    move |value| match value {
        Value::Array(entries) => entries.iter().map(&entry).collect(),
        other => Err(format!("must be a list in brackets, not {}", kind(other))),
    }
}

/// An address or a network.
pub(super) fn network(value: &Value) -> Read<String> {
    let network = text(value)?;
    match AllowList::parse([&network]) {
        Ok(_) => Ok(network),
        Err(error) => Err(format!("must name addresses or networks: {error}")),
    }
}

/// The address of a service that begins with one of `schemes`.
pub(super) fn address(schemes: &'static [&'static str]) -> impl Fn(&Value) -> Read<Address> {
    move |value| {
        let text = text(value)?;
        if schemes.iter().any(|scheme| text.starts_with(scheme)) {
            Ok(Address::new(text))
        } else {
            // Not the text itself: there may be a password in it.
            Err(format!("must begin with {}", schemes.join(" or ")))
        }
    }
}
