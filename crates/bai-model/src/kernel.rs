//! Kernel states and their legal transitions (`data-model.md` 7.1, `agent-protocol.md` 5.2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The state of a kernel. `Building`, `Resizing` and `Suspended` are never written by 19.06 but can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum KernelStatus {
    Preparing,
    Building,
    Running,
    Restarting,
    Resizing,
    Suspended,
    Terminating,
    Terminated,
    Error,
}

impl KernelStatus {
    pub const ALL: [Self; 9] = [
        Self::Preparing,
        Self::Building,
        Self::Running,
        Self::Restarting,
        Self::Resizing,
        Self::Suspended,
        Self::Terminating,
        Self::Terminated,
        Self::Error,
    ];

    /// The name stored in the database and shown to clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "PREPARING",
            Self::Building => "BUILDING",
            Self::Running => "RUNNING",
            Self::Restarting => "RESTARTING",
            Self::Resizing => "RESIZING",
            Self::Suspended => "SUSPENDED",
            Self::Terminating => "TERMINATING",
            Self::Terminated => "TERMINATED",
            Self::Error => "ERROR",
        }
    }

    /// Whether the kernel still holds its name, its slots and its place in the quotas.
    pub fn is_alive(self) -> bool {
        self != Self::Terminated
    }

    /// Whether the session can be asked to do work.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Running | Self::Restarting)
    }

    /// Whether a kernel in this state may become `next`. `Terminated` is final; everything alive may be terminated
    /// or fail.
    pub fn may_become(self, next: Self) -> bool {
        use KernelStatus as S;
        match (self, next) {
            (S::Terminated, _) | (_, S::Preparing) => false,
            (_, S::Terminated) => true,
            (S::Terminating, S::Error) => true,
            (S::Terminating, _) => false,
            (_, S::Terminating | S::Error) => true,
            (S::Preparing, S::Building | S::Running) => true,
            (S::Building | S::Restarting | S::Resizing | S::Suspended, S::Running) => true,
            (S::Running | S::Error, S::Restarting) => true,
            (S::Running, S::Resizing | S::Suspended) => true,
            _ => false,
        }
    }
}

impl fmt::Display for KernelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernel status: {0}")]
pub struct UnknownKernelStatus(pub String);

impl FromStr for KernelStatus {
    type Err = UnknownKernelStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownKernelStatus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for status in KernelStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("running".parse::<KernelStatus>().is_err());
    }

    #[test]
    fn terminated_is_final_and_always_reachable() {
        for status in KernelStatus::ALL {
            assert!(!KernelStatus::Terminated.may_become(status));
            if status.is_alive() {
                assert!(status.may_become(KernelStatus::Terminated));
            }
        }
    }

    #[test]
    fn a_terminating_kernel_never_runs_again() {
        assert!(!KernelStatus::Terminating.may_become(KernelStatus::Running));
        assert!(!KernelStatus::Terminating.may_become(KernelStatus::Restarting));
    }
}
