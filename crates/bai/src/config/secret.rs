//! Values that nobody prints.

use std::fmt;

use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

const MASK: &str = "********";

/// A password. Printed and dumped as stars, wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself, for the service that it opens.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { MASK })
    }
}

/// The address of a service, `scheme://…`. Printed and dumped without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(Secret);

impl Address {
    pub fn new(text: String) -> Self {
        Self(Secret::new(text))
    }

    /// With the password, for the service.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Parameters may be passwords too.
        let (text, parameters) = match self.0.expose().split_once('?') {
            Some((text, _)) => (text, "?…"),
            None => (self.0.expose(), ""),
        };
        let parts = text.split_once("://").and_then(|(scheme, rest)| {
            let (credentials, place) = rest.rsplit_once('@')?;
            let (user, _) = credentials.split_once(':')?;
            Some((scheme, user, place))
        });
        match parts {
            Some((scheme, user, place)) => write!(f, "{scheme}://{user}:{MASK}@{place}{parameters}"),
            None => write!(f, "{text}{parameters}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
