//! Who is who: credentials for signature checks, logins, usage counters and rate limits (`http-api.md` 3.8, 3.13, 4.2).

use std::sync::Arc;

use bai_model::{AccessKey, SecretKey};

use crate::{Error, Identity, Manager, Op, Result};

/// What is needed to verify a signature, and who signed if it holds.
#[derive(Clone, Debug)]
pub struct Credential {
    pub identity: Arc<Identity>,
    pub secret_key: SecretKey,
}

/// The answer to a login.
#[derive(Clone, Debug)]
pub struct Authorized {
    pub access_key: AccessKey,
    pub secret_key: SecretKey,
    /// The user's role.
    pub role: String,
}

/// What `X-RateLimit-*` headers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub limit: u64,
    pub remaining: u64,
}

/// The window of the rate limit in seconds.
pub const RATE_LIMIT_WINDOW: u64 = 900;

impl Manager {
    /// The credential of an active keypair of an active user in an active domain; `None` otherwise. Cached briefly.
    pub async fn credential(&self, _access_key: &AccessKey) -> Result<Option<Credential>> {
        Err(Error::NotImplemented)
    }

    /// Counts a verified request against its keypair's limit and notes the use of the keypair.
    ///
    /// # Errors
    /// [`Error::RateLimitExceeded`].
    pub async fn admit(&self, _op: &Op) -> Result<RateLimit> {
        Err(Error::NotImplemented)
    }

    /// Exchanges an e-mail address and a password for a keypair: the oldest active one.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] with `User credential mismatch.` whatever the reason.
    pub async fn authorize(
        &self,
        _op: &Op,
        _domain: &str,
        _email: &str,
        _password: &str,
    ) -> Result<Authorized> {
        Err(Error::NotImplemented)
    }

    /// Whether requests of this kind may pass now (`http-api.md` 6.1).
    ///
    /// # Errors
    /// [`Error::ServerFrozen`] or [`Error::ServiceUnavailable`].
    pub async fn check_status(&self, _gate: StatusGate) -> Result<()> {
        Err(Error::NotImplemented)
    }
}

/// What an endpoint demands of the manager's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusGate {
    /// Any status.
    None,
    /// `running` only.
    Running,
    /// `running` or `frozen`.
    RunningOrFrozen,
}
