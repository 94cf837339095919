//! The context of an operation: who asks, since when, and under which request id. The first argument of every method
//! of [`crate::Manager`] that a request can reach.

use std::sync::Arc;

use bai_model::{AccessKey, DomainName, KeypairResourcePolicy, UserId, UserRole};
use chrono::{DateTime, Utc};

/// One operation on somebody's behalf.
#[derive(Clone, Debug)]
pub struct Op {
    /// Appears in the answer's `X-BackendAI-RequestID` header and in every log line of the operation.
    pub request_id: String,
    /// When the request arrived.
    pub now: DateTime<Utc>,
    pub actor: Actor,
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Actor {
    Anonymous,
    /// A verified keypair.
    Keypair(Arc<Identity>),
    /// The system itself: a reconciler or a timer, by name.
    System(&'static str),
}

/// A keypair whose signature was verified, with its user and policy (`http-api.md` 3.8).
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub access_key: AccessKey,
    pub user: UserId,
    /// The user's e-mail address.
    pub email: String,
    pub role: UserRole,
    /// `keypairs.is_admin`, independent of the role.
    pub is_admin: bool,
    pub domain: Option<DomainName>,
    pub policy: KeypairResourcePolicy,
    /// Requests in 15 minutes; NULL in the database means 1000.
    pub rate_limit: u64,
}

impl Identity {
    pub fn is_superadmin(&self) -> bool {
        self.role == UserRole::Superadmin
    }
}

impl Op {
    /// Lets superadmins pass, and the system itself (`http-api.md` 3.10, Q-04).
    ///
    /// # Errors
    /// [`crate::Error::Unauthorized`] for anybody else, which is 401 for known requesters too.
    pub fn superadmin(&self) -> crate::Result<()> {
        match &self.actor {
            Actor::System(_) => Ok(()),
            Actor::Keypair(identity) if identity.is_superadmin() => Ok(()),
            Actor::Keypair(_) | Actor::Anonymous => Err(crate::Error::Unauthorized(None)),
        }
    }

    /// The verified keypair, or the 401 that its absence means.
    pub fn identity(&self) -> crate::Result<&Identity> {
        match &self.actor {
            Actor::Keypair(identity) => Ok(identity),
            Actor::Anonymous | Actor::System(_) => Err(crate::Error::Unauthorized(None)),
        }
    }
}
