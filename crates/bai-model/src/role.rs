//! User roles and folder permissions (`data-model.md` 2, 17.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a user may do. Reaches: everything, the own domain, the own things, looking only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserRole {
    Superadmin,
    Admin,
    User,
    Monitor,
}

impl UserRole {
    pub const ALL: [Self; 4] = [Self::Superadmin, Self::Admin, Self::User, Self::Monitor];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Superadmin => "superadmin",
            Self::Admin => "admin",
            Self::User => "user",
            Self::Monitor => "monitor",
        }
    }

    /// Whether a keypair made together with a user of this role is an administrator's (`http-api.md` 3.10).
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Superadmin | Self::Admin)
    }
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown user role: {0}")]
pub struct UnknownUserRole(pub String);

impl FromStr for UserRole {
    type Err = UnknownUserRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownUserRole(text.to_owned()))
    }
}

/// What may be done with a virtual folder; each permission implies the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VFolderPermission {
    #[serde(rename = "ro")]
    ReadOnly,
    #[serde(rename = "rw")]
    ReadWrite,
    #[serde(rename = "wd")]
    ReadWriteDelete,
}

impl VFolderPermission {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
            Self::ReadWriteDelete => "wd",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown folder permission: {0}")]
pub struct UnknownVFolderPermission(pub String);

impl FromStr for VFolderPermission {
    type Err = UnknownVFolderPermission;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ro" => Ok(Self::ReadOnly),
            "rw" => Ok(Self::ReadWrite),
            "wd" => Ok(Self::ReadWriteDelete),
            other => Err(UnknownVFolderPermission(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_imply_the_weaker_ones() {
        assert!(VFolderPermission::ReadWriteDelete > VFolderPermission::ReadWrite);
        assert!(VFolderPermission::ReadWrite > VFolderPermission::ReadOnly);
    }
}
