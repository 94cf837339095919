//! Keypairs: generation (`data-model.md` 8.1) and a secret type that cannot be printed by accident.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::random::Random;

/// Characters of `keypairs.access_key`.
const MAX_ACCESS_KEY: usize = 20;

/// The public half of a keypair: 20 characters beginning with `AKIA` when generated here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccessKey(pub String);

impl AccessKey {
    /// `AKIA` and the base32 of 10 random bytes.
    pub fn generate(random: &dyn Random) -> Self {
        let mut bytes = [0; 10];
        random.fill(&mut bytes);
        Self(format!("AKIA{}", data_encoding::BASE32_NOPAD.encode(&bytes)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a keypair can have this key: what is longer than the column (`data-model.md` 3), or has characters that
    /// no key has, need not be looked for.
    pub fn can_exist(&self) -> bool {
        (1..=MAX_ACCESS_KEY).contains(&self.0.len()) && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl fmt::Display for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for AccessKey {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The secret half of a keypair. Not serialisable, not printable, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The URL-safe base64 of 30 random bytes: 40 characters.
    pub fn generate(random: &dyn Random) -> Self {
        let mut bytes = Zeroizing::new([0; 30]);
        random.fill(&mut *bytes);
        Self::new(URL_SAFE_NO_PAD.encode(*bytes))
    }

    /// The secret itself: to sign, to store, or to show to its owner once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(u8);
    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn generated_keys_have_the_documented_shape() {
        let access_key = AccessKey::generate(&Fixed(0xa5));
        assert_eq!(access_key.as_str().len(), 20);
        assert!(access_key.as_str().starts_with("AKIA"));
        assert_eq!(SecretKey::generate(&Fixed(0xa5)).expose().len(), 40);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", SecretKey::new("hunter2".into())).contains("hunter2"));
    }
}
