//! Keypair resource policies (`data-model.md` 6, 15.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::slot::ResourceSlot;

/// What a policy says of slots that it does not name: none of them, or as many as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DefaultForUnspecified {
    Limited,
    Unlimited,
}

impl DefaultForUnspecified {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limited => "LIMITED",
            Self::Unlimited => "UNLIMITED",
        }
    }
}

impl fmt::Display for DefaultForUnspecified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown default for unspecified slots: {0}")]
pub struct UnknownDefault(pub String);

impl FromStr for DefaultForUnspecified {
    type Err = UnknownDefault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "LIMITED" => Ok(Self::Limited),
            "UNLIMITED" => Ok(Self::Unlimited),
            other => Err(UnknownDefault(other.to_owned())),
        }
    }
}

/// The limits of a keypair.
#[derive(Clone, Debug, PartialEq)]
pub struct KeypairResourcePolicy {
    pub name: String,
    pub default_for_unspecified: DefaultForUnspecified,
    pub total_resource_slots: ResourceSlot,
    /// Sessions that may be alive at once.
    pub max_concurrent_sessions: i64,
    /// Stored only; sessions have one kernel.
    pub max_containers_per_session: i64,
    /// Folders that a user may own; 0 or less means any number.
    pub max_vfolder_count: i64,
    /// Stored only, in bytes.
    pub max_vfolder_size: i64,
    /// Seconds without use after which a session ends; 0 means never.
    pub idle_timeout: i64,
    pub allowed_vfolder_hosts: Vec<String>,
}
