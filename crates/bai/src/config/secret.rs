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
        let text = self.0.expose();
        let masked = text.split_once("://").and_then(|(scheme, rest)| {
            let (credentials, place) = rest.rsplit_once('@')?;
            let (user, _) = credentials.split_once(':')?;
            // A parameter may be a password too.
            let place = place.split('?').next().unwrap_or(place);
            Some(format!("{scheme}://{user}:{MASK}@{place}"))
        });
        match masked {
            Some(masked) => f.write_str(&masked),
            None => f.write_str(text.split('?').next().unwrap_or(text)),
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
