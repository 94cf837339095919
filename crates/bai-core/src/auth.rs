//! Who is who: credentials for signature checks, logins, usage counters and rate limits (`http-api.md` 3.8, 3.13, 4.2).
//!
//! Invariants: an inactive keypair, user or domain gets in nowhere, at the latest [`CREDENTIAL_TTL`] after it became
//! inactive; a failed login tells nobody which part was wrong, not even by its duration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bai_model::{AccessKey, DomainName, SecretKey};
use chrono::{DateTime, TimeDelta, Utc};

use crate::{Actor, Error, Identity, Manager, Op, Result};

/// How long a credential is believed without asking the database again.
pub const CREDENTIAL_TTL: TimeDelta = crate::fresh::TTL;
/// Credentials kept in memory at most.
pub(crate) const CREDENTIALS: usize = 10_000;
/// Counters that are kept while the database is away.
const UNWRITTEN_COUNTERS: usize = 100_000;
/// The window of the rate limit in seconds.
pub const RATE_LIMIT_WINDOW: u64 = 900;
/// Requests in the window where the database says NULL.
const DEFAULT_RATE_LIMIT: u64 = 1000;
/// Each takes a quarter of a second of a core, and anybody may ask for one.
pub(crate) const PASSWORD_CHECKS_AT_ONCE: usize = 2;
/// How long a log-in may wait for others.
const PASSWORD_CHECK_QUEUE: Duration = Duration::from_secs(10);
/// A bcrypt hash of nothing in particular: what the password of an unknown user is compared with, so that the answer
/// takes as long as for a known one.
const NOBODYS_HASH: &str = "$2b$12$lSYwWZAxvjMTUHubHgGU6eoZL2w779v2ED6sZh/o233pru7G91r/6";

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

/// Counters that are not worth a transaction each.
#[derive(Debug, Default)]
pub(crate) struct UsageLedger(Mutex<Usage>);

#[derive(Debug, Default)]
struct Usage {
    keypairs: HashMap<AccessKey, (i64, DateTime<Utc>)>,
    sessions: HashMap<(AccessKey, String), i64>,
}

impl UsageLedger {
    fn note_request(&self, access_key: &AccessKey, at: DateTime<Utc>) {
        let mut usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match usage.keypairs.get_mut(access_key) {
            Some((count, last_used)) => (*count, *last_used) = (*count + 1, at),
            None => _ = usage.keypairs.insert(access_key.clone(), (1, at)),
        }
    }

    pub(crate) fn note_session_use(&self, access_key: &AccessKey, session: &str) {
        let mut usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *usage
            .sessions
            .entry((access_key.clone(), session.to_owned()))
            .or_default() += 1;
    }

    /// Puts back what could not be written, under what was counted since, unless that is a great deal.
    fn put_back(&self, unwritten: Usage) {
        let mut usage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unwritten.keypairs.len() + unwritten.sessions.len() > UNWRITTEN_COUNTERS {
            tracing::warn!(
                "usage counters were given up: there are too many to keep until the database is back"
            );
            return;
        }
        for (access_key, (count, at)) in unwritten.keypairs {
            let (sum, last_used) = usage.keypairs.entry(access_key).or_insert((0, at));
            (*sum, *last_used) = (*sum + count, at.max(*last_used));
        }
        for (session, count) in unwritten.sessions {
            *usage.sessions.entry(session).or_default() += count;
        }
    }

    fn take(&self) -> Usage {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Manager {
    /// The credential of an active keypair of an active user in an active domain; `None` otherwise. Cached briefly.
    pub async fn credential(&self, access_key: &AccessKey) -> Result<Option<Credential>> {
        // Keys that cannot exist must not fill the cache either.
        if !access_key.can_exist() {
            return Ok(None);
        }
        let reading = match self.credentials.get_of(access_key, self.clock.now()) {
            Ok(credential) => return Ok(credential),
            Err(reading) => reading,
        };
        // In a box, because a query's future is large and this one is part of every request.
        let credential = Box::pin(self.read_credential(access_key)).await?;
        self.credentials
            .put_of(access_key.clone(), reading, credential.clone());
        Ok(credential)
    }

    async fn read_credential(&self, access_key: &AccessKey) -> Result<Option<Credential>> {
        let row = self.store.reader().credential_by_access_key(access_key).await?;
        let row = row.filter(|row| {
            // NULL users.is_active and a missing domain occur in old rows and mean nothing against the user.
            row.keypair_is_active && row.user_is_active != Some(false) && row.domain_is_active != Some(false)
        });
        Ok(row.map(|row| Credential {
            identity: Arc::new(Identity {
                access_key: row.access_key,
                user: row.user,
                email: row.email,
                role: row.role,
                is_admin: row.is_admin,
                domain: row.domain_name.map(DomainName),
                policy: row.policy,
                rate_limit: row
                    .rate_limit
                    .map_or(DEFAULT_RATE_LIMIT, |limit| u64::try_from(limit).unwrap_or(0)),
            }),
            secret_key: row.secret_key,
        }))
    }

    /// Counts a verified request against its keypair's limit and notes the use of the keypair. Refused requests count
    /// too.
    ///
    /// # Errors
    /// [`Error::RateLimitExceeded`].
    pub async fn admit(&self, op: &Op) -> Result<RateLimit> {
        let identity = op.identity()?;
        self.usage.note_request(&identity.access_key, op.now);
        let window = Duration::from_secs(RATE_LIMIT_WINDOW);
        let count = self
            .rates
            .hit(identity.access_key.as_str(), op.now, window)
            .await?;
        let remaining = identity
            .rate_limit
            .checked_sub(count)
            .ok_or(Error::RateLimitExceeded)?;
        Ok(RateLimit {
            limit: identity.rate_limit,
            remaining,
        })
    }

    /// Exchanges an e-mail address and a password for a keypair: the oldest active one.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] with `User credential mismatch.` whatever the reason.
    pub async fn authorize(&self, _op: &Op, domain: &str, email: &str, password: &str) -> Result<Authorized> {
        let mismatch = || Error::Unauthorized(Some("User credential mismatch.".to_owned()));
        let user = self.store.reader().user_by_email(domain, email).await?;
        let hash = user
            .as_ref()
            .and_then(|user| user.password.clone())
            .unwrap_or_else(|| NOBODYS_HASH.to_owned());
        let matches = self.check_password(password.to_owned(), hash).await?;
        let user = user.filter(|user| matches && user.password.is_some() && user.is_active != Some(false));
        let user = user.ok_or_else(mismatch)?;
        let domain = self.store.reader().domain(domain).await?;
        if domain.is_some_and(|domain| domain.is_active == Some(false)) {
            return Err(mismatch());
        }
        let keypairs = self.store.reader().keypairs_of_user(user.uuid).await?;
        let keypair = keypairs
            .into_iter()
            .find(|keypair| keypair.is_active == Some(true))
            .ok_or_else(mismatch)?;
        Ok(Authorized {
            access_key: keypair.access_key,
            secret_key: keypair.secret_key,
            role: user.role.as_str().to_owned(),
        })
    }

    /// Compares a password with its hash, off the threads that serve, and not more at once than the machine bears.
    async fn check_password(&self, password: String, hash: String) -> Result<bool> {
        let queued = tokio::time::timeout(PASSWORD_CHECK_QUEUE, self.password_checks.acquire()).await;
        let Ok(Ok(_permit)) = queued else {
            let text = "too many log-ins at once; try again shortly";
            return Err(Error::ServiceUnavailable(text.to_owned()));
        };
        tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false))
            .await
            .map_err(|error| Error::Internal(format!("the password check was interrupted: {error}")))
    }

    /// Hashes a password as the database keeps it (`data-model.md` 8.2). Takes a quarter of a second of a core.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for a password that contains NUL.
    pub fn hash_password(password: &str) -> Result<String> {
        if password.contains('\0') {
            return Err(Error::invalid("a password must not contain NUL characters"));
        }
        bcrypt::hash(password, 12)
            .map_err(|error| Error::Internal(format!("cannot hash a password: {error}")))
    }

    /// Writes the counters gathered since the last call. While the database is away they are kept; what may have been
    /// written is not written again.
    pub(crate) async fn flush_usage(&self) {
        let usage = self.usage.take();
        if usage.keypairs.is_empty() && usage.sessions.is_empty() {
            return;
        }
        let prepared: std::result::Result<_, bai_store::Error> = async {
            let mut tx = self.store.begin().await?;
            let keypairs: Vec<_> = usage
                .keypairs
                .iter()
                .map(|(key, (count, at))| (key.clone(), *count, *at))
                .collect();
            tx.record_usage(&keypairs).await?;
            let sessions: Vec<_> = usage
                .sessions
                .iter()
                .map(|((access_key, session), count)| (access_key.clone(), session.clone(), *count))
                .collect();
            tx.record_session_usage(&sessions).await?;
            Ok(tx)
        }
        .await;
        let written = match prepared {
            Ok(tx) => tx.commit().await,
            Err(error) => {
                if error.is_retryable() {
                    self.usage.put_back(usage);
                }
                Err(error)
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "usage counters could not be written");
        }
    }
}

impl Op {
    /// The owner whose sessions the operation means (`http-api.md` 1.14): the requester, or the named key if the
    /// requester is an administrator.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for anybody else's key.
    pub(crate) fn owner<'a>(&'a self, owner: Option<&'a AccessKey>) -> Result<&'a AccessKey> {
        let Actor::Keypair(identity) = &self.actor else {
            return Err(Error::Unauthorized(None));
        };
        match owner {
            None => Ok(&identity.access_key),
            Some(owner) if *owner == identity.access_key => Ok(&identity.access_key),
            Some(owner) if identity.is_admin => Ok(owner),
            Some(_) => Err(Error::Forbidden(
                "Only admins can access or control sessions owned by others.".to_owned(),
            )),
        }
    }
}
