//! The one error of this crate: it says whether the same call may succeed later.

use crate::kv::LeaseId;

/// What can go wrong between a caller and the cluster's shared services.
///
/// Losing a race (a failed compare, a lock held by another) is an answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A service on the network could not be used. The same call may succeed later.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The service did not answer, or not in time; nothing is known to have happened. The same call may succeed later.
    #[error("{0}")]
    Retryable(String),
    /// The same call fails again, however often it is tried.
    #[error(transparent)]
    Terminal(#[from] Terminal),
}

/// A service that cannot be used at the moment: absent, silent, overloaded, or refusing our name and password (which an
/// operator can mend on its side, so that this too may pass).
///
/// A call that changes something may have been carried out all the same, when the answer was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{service} at {address} {why} (see {setting})")]
pub struct Unavailable {
    /// `etcd` or `Redis`.
    pub service: &'static str,
    /// Host and port, several separated by commas. Never a password.
    pub address: String,
    /// Where an operator sets what is wrong: the address, or the user and password.
    pub setting: &'static str,
    /// Continues the sentence that the address begins: "did not answer within 5s".
    pub why: String,
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
    /// The file or key cannot be used: it is damaged, not ours, or written by a newer version.
    #[error("{0}")]
    Unusable(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Retryable(_))
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Terminal::Invalid(why.into()).into()
    }
}

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// How a service on the network is named in errors.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub name: &'static str,
    /// Without user and password.
    pub address: String,
    /// Where the address is set.
    pub address_setting: &'static str,
    /// Where user and password are set.
    pub credentials_setting: &'static str,
}

impl Service {
    /// It is absent, silent or unable. `why` continues the sentence "etcd at 127.0.0.1:2379 …".
    pub fn unavailable(&self, why: impl Into<String>) -> Error {
        self.error(self.address_setting, why.into())
    }

    /// It does not let us in.
    pub fn refuses(&self, why: &str) -> Error {
        self.error(
            self.credentials_setting,
            format!("refuses the user or password: {why}"),
        )
    }

    fn error(&self, setting: &'static str, why: String) -> Error {
        Error::Unavailable(Unavailable {
            service: self.name,
            address: self.address.clone(),
            setting,
            why,
        })
    }
}
