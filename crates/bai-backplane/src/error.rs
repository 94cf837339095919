//! The one error of this crate: it says whether the same call may succeed later.

use crate::kv::LeaseId;

/// What can go wrong between a caller and the cluster's shared services.
///
/// Losing a race (a failed compare, a lock held by another) is an answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The service did not answer, or not in time; nothing is known to have happened. The same call may succeed later.
    #[error("{0}")]
    Retryable(String),
    /// The same call fails again, however often it is tried.
    #[error(transparent)]
    Terminal(#[from] Terminal),
}

/// Why trying again is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Terminal {
    /// The request itself is wrong: too large, contradictory, or outside what the store can hold.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The lease ran out, was revoked, or never was. Its keys are gone.
    #[error("lease {0} does not exist or has expired")]
    LeaseGone(LeaseId),
    /// No implementation answers to this address.
    #[error("{0}")]
    Address(String),
    /// The file cannot be used: it is damaged, not ours, or written by a newer version.
    #[error("{0}")]
    Unusable(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Retryable(_))
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Terminal::Invalid(why.into()).into()
    }
}

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;
