//! The configuration store: a small, ordered, durable map of text to text that every manager and agent of a cluster
//! shares, with transactions, watches and leases.
//!
//! Invariants: semantics are etcd's, so that both implementations answer alike. Every commit that changes something gets
//! the next revision, and revisions never go backwards, not even over a crash. A write that has returned is durable and is
//! seen by every later read. A watcher misses nothing silently: either it sees every commit in order, or it is told to
//! read again ([`WatchEvent::Resync`]).
//!
//! Not here: the namespace and scopes of keys ([`crate::config`]).

mod check;
mod draft;
mod etcd;
mod journal;
mod local;
mod presence;
mod tree;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_model::time::Clock;
use futures_util::stream::BoxStream;

pub use etcd::EtcdKv;
pub use local::LocalKv;
pub use presence::Presence;

use crate::{Result, Terminal};

/// Operations that one transaction may hold, and compares likewise (etcd's default limit).
pub const MAX_TXN_OPS: usize = 128;
/// Bytes of keys and values that one transaction may hold (etcd's default limit).
pub const MAX_TXN_BYTES: usize = 1_572_864;

/// The number of a commit. Grows by one with each; [`Revision::ZERO`] is the empty store's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    /// The revision after this one: where a watcher that has seen this one goes on.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease. Never used twice by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value and the commit that last wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub revision: Revision,
}

/// The keys below a prefix at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision at that moment: a watch from `revision.next()` continues this listing without a gap.
    pub revision: Revision,
    /// Ordered by the bytes of the key.
    pub entries: Vec<KeyValue>,
}

/// What a transaction expects of one key before it does anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Value(String),
    /// The key exists and was last written by this commit.
    Revision(Revision),
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    pub expect: Expect,
}

/// One effect of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key. With a lease the key vanishes when the lease ends; without one it is detached from any lease.
    Put {
        key: String,
        value: String,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
    /// Deletes every key that starts with these bytes; there are no segment boundaries.
    DeletePrefix {
        prefix: String,
    },
}

/// If all compares hold, all ops happen, as one commit; otherwise nothing happens. Two ops may not touch the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.compares.push(Compare {
            key: key.into(),
            expect,
        });
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Adds a write that lives as long as `lease`.
    #[must_use]
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<String>, lease: LeaseId) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Adds the deletion of a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Adds the deletion of everything that starts with `prefix`.
    #[must_use]
    pub fn delete_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.ops.push(Op::DeletePrefix {
            prefix: prefix.into(),
        });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all compares held. When not, nothing was done.
    pub succeeded: bool,
    /// The revision of the commit, or the store's current one when nothing changed.
    pub revision: Revision,
    /// Keys that existed and were deleted.
    pub deleted: u64,
}

/// What one commit did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put {
        key: String,
        value: String,
    },
    /// Deleted by a caller or by the end of its lease.
    Delete {
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one commit below the watched prefix, in the order of the transaction. A watcher that is
    /// interrupted resumes from `revision.next()`.
    Changes {
        revision: Revision,
        changes: Vec<Change>,
    },
    /// Commits up to and including `revision` may have been missed: read the prefix again. What comes after `revision`
    /// follows as usual.
    Resync { revision: Revision },
}

/// Events in the order of their revisions. Ends only with the store itself; dropping it ends the watch.
pub type Watch = BoxStream<'static, WatchEvent>;

/// The store.
///
/// Keys are not empty. All methods give a retryable error when the store cannot be reached or cannot write.
/// A write that failed so may still have happened (the answer can get lost); a compare tells.
#[async_trait]
pub trait ConfigKv: Send + Sync + std::fmt::Debug {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;

    /// Everything whose key starts with these bytes.
    async fn get_prefix(&self, prefix: &str) -> Result<Listing>;

    /// Does all of `txn` or nothing.
    ///
    /// # Errors
    /// [`Terminal::Invalid`] for more than [`MAX_TXN_OPS`] or [`MAX_TXN_BYTES`], an empty key, or a key touched twice;
    /// [`Terminal::LeaseGone`] for a put under a lease that has ended.
    async fn transact(&self, txn: Txn) -> Result<TxnOutcome>;

    /// Changes below a byte prefix, beginning with commit `from`, or with the next commit when `None`. When commits
    /// since `from` are no longer known, the first event is a resync.
    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch>;

    /// A new lease that ends `ttl` from now unless kept alive. A restart of the store may prolong it, never shorten it.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId>;

    /// Lets a lease live its full ttl from now.
    ///
    /// # Errors
    /// [`Terminal::LeaseGone`] when it has ended: its keys are gone, take a new one.
    async fn keep_alive(&self, lease: LeaseId) -> Result<()>;

    /// Ends a lease now and deletes its keys.
    ///
    /// # Errors
    /// [`Terminal::LeaseGone`] when it has ended already.
    async fn revoke(&self, lease: LeaseId) -> Result<()>;

    /// Writes a key; says with which revision.
    async fn put(&self, key: &str, value: &str) -> Result<Revision> {
        Ok(self.transact(Txn::new().put(key, value)).await?.revision)
    }

    /// Writes a key if it is as expected; says whether it was.
    async fn compare_and_put(&self, key: &str, expect: Expect, value: &str) -> Result<bool> {
        Ok(self
            .transact(Txn::new().when(key, expect).put(key, value))
            .await?
            .succeeded)
    }

    /// Deletes a key; says whether it existed.
    async fn delete(&self, key: &str) -> Result<bool> {
        Ok(self.transact(Txn::new().delete(key)).await?.deleted > 0)
    }

    /// Deletes everything whose key starts with these bytes; says how many keys that were.
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        Ok(self.transact(Txn::new().delete_prefix(prefix)).await?.deleted)
    }
}

/// Opens the store at `uri`:
///
/// * `embedded:///path/file.db`: made when missing; one process at a time.
/// * `memory:`: forgets everything when it is dropped.
/// * `etcd://[user:password@]host[:port][,host[:port]…][?tls=true&ca=/path.pem&timeout=5]`: the servers of one cluster; user
///   and password percent-encoded; `ca` in place of the system's authorities; `timeout` in seconds for every call. No
///   server is asked yet, so that a manager can start before them: the first call tells.
///
/// # Errors
/// [`Terminal::Address`] for another or malformed address; [`Terminal::Unusable`] for a file that is not such a store;
/// [`crate::Error::Retryable`] when the file cannot be reached or another process has it open.
pub async fn open(uri: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn ConfigKv>> {
    if uri == "memory:" {
        return Ok(Arc::new(LocalKv::memory(clock)));
    }
    match uri.split_once("://") {
        Some(("embedded", path)) if path.starts_with('/') => {
            Ok(Arc::new(LocalKv::embedded(Path::new(path), clock).await?))
        }
        Some(("etcd", rest)) => Ok(Arc::new(EtcdKv::new(rest)?)),
        // Not the address itself: there may be a password in it.
        _ => Err(Terminal::Address(
            "not the address of a configuration store; use embedded:///path/file.db, etcd://host:port or memory:"
                .to_owned(),
        )
        .into()),
    }
}
