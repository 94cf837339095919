//! Typed identifiers: one type for each entity, so that a user id cannot be passed for a group id.
//!
//! UUID-backed ids are made from random bytes handed in by the caller; text-backed ids are validated where the
//! specification restricts them and opaque otherwise.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::random::Random;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new version 4 id out of `random`.
            pub fn generate(random: &dyn Random) -> Self {
                let mut bytes = [0; 16];
                random.fill(&mut bytes);
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

uuid_id!(
    /// A kernel: one container or sandbox. The name that agents use.
    KernelId
);
uuid_id!(
    /// An account (`users.uuid`).
    UserId
);
uuid_id!(
    /// A group, also called project (`groups.id`).
    GroupId
);
uuid_id!(
    /// A virtual folder (`vfolders.id`).
    VFolderId
);
text_id!(
    /// A host that runs kernels (`agents.id`), for example `i-worker01`.
    AgentId
);
text_id!(
    /// A domain, the upper level of tenancy (`domains.name`).
    DomainName
);
text_id!(
    /// One run of code within a session; chosen by the client or 32 hexadecimal digits.
    RunId
);

impl RunId {
    /// `digits` random hexadecimal digits; agents assign 32, the gateway 16 (`http-api.md` 4.8.5, 4.9.2).
    pub fn generate(random: &dyn Random, digits: usize) -> Self {
        let mut bytes = vec![0; digits.div_ceil(2)];
        random.fill(&mut bytes);
        let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.truncate(digits);
        Self(text)
    }
}

/// The session name that a client chooses (`kernels.sess_id`, "client session token").
///
/// 4 to 64 ASCII word characters, `.` and `-`, beginning and ending with a word character
/// (`http-api.md` 4.8.1). A full match: the trailing newline that the original let through is refused (DM-45).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SessionName(String);

/// The pattern as the original shows it in its error texts.
pub const SESSION_NAME_PATTERN: &str = r"^(?=.{4,64}$)\w[\w.-]*\w$";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not match pattern {SESSION_NAME_PATTERN}")]
pub struct InvalidSessionName;

impl SessionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionName {
    type Err = InvalidSessionName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let ends_are_words = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
        let inner_is_legal = bytes
            .iter()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if (4..=64).contains(&bytes.len()) && ends_are_words && inner_is_legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSessionName)
        }
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_names_follow_the_pattern() {
        for good in ["abcd", "a.-b", "_x-y_", &"a".repeat(64)] {
            assert!(good.parse::<SessionName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "abc",
            "-abc",
            "abc-",
            "abc\n",
            "ab cd",
            "héllo",
            &"a".repeat(65),
        ] {
            assert!(bad.parse::<SessionName>().is_err(), "{bad:?}");
        }
    }
}
