//! The broker: what managers and agents tell each other and may forget. A cache with expiry, counters, locks,
//! publish/subscribe, bounded streams and heartbeats.
//!
//! Invariants: nothing here is the truth; every caller must live with an empty broker at any moment. Each call is one
//! atomic operation. Messages reach each subscriber in order, and one that was too slow is told so.
//!
//! Not here: what is cached or said, retries, and limits of waits for others ([`Locks::lock`], [`Streams::follow`]: callers
//! wrap them in their own).

mod memory;
mod redis;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_model::time::Clock;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;

pub use memory::MemoryBroker;
pub use redis::RedisBroker;

use crate::{Result, Terminal};

/// Messages that a subscriber may lag behind before the oldest are lost to it.
pub const SUBSCRIBER_BACKLOG: usize = 1024;

/// Values that expire.
#[async_trait]
pub trait Cache: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// The values of many keys at one moment, in the order of `keys`.
    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>>;

    /// Sets a value that vanishes `ttl` from now. A previous value and its ttl are forgotten.
    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()>;

    /// Removes a value; says whether there was one.
    async fn remove(&self, key: &str) -> Result<bool>;
}

/// Numbers that many change at once.
#[async_trait]
pub trait Counters: Send + Sync {
    /// Adds to a counter, which begins at 0 and keeps its value until the broker forgets; gives the sum.
    async fn add(&self, key: &str, amount: i64) -> Result<i64>;

    /// Notes an event at `now` and says how many there were in the window that ends now: those later than
    /// `now - window`, this one included. Milliseconds count (`http-api.md` 3.13).
    async fn hit(&self, key: &str, now: DateTime<Utc>, window: Duration) -> Result<u64>;
}

/// A lock that was acquired. Whoever writes under it should say the token along: a greater token is a later holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    pub name: String,
    /// Grows with every acquisition of any lock.
    pub token: u64,
}

/// Locks that end by themselves. Not fair: who waits longest need not be next. Dropping a [`Lock`] does not release it.
#[async_trait]
pub trait Locks: Send + Sync {
    /// Takes the lock for `ttl` unless somebody has it.
    async fn try_lock(&self, name: &str, ttl: Duration) -> Result<Option<Lock>>;

    /// Waits until it can take the lock. Dropping the future gives up the wait and holds nothing.
    async fn lock(&self, name: &str, ttl: Duration) -> Result<Lock>;

    /// Holds the lock `ttl` from now; false when it was lost before, even if nobody has it.
    async fn renew(&self, lock: &Lock, ttl: Duration) -> Result<bool>;

    /// Gives the lock up; false when it was lost before.
    async fn unlock(&self, lock: &Lock) -> Result<bool>;
}

/// What a subscriber receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Payload(Bytes),
    /// Messages were lost here: the subscriber was more than [`SUBSCRIBER_BACKLOG`] behind, or the connection broke.
    Gap,
}

/// Messages of a channel in the order of their publication. Ends only with the broker.
pub type Subscription = BoxStream<'static, Message>;

/// Messages to whoever listens at the moment.
#[async_trait]
pub trait PubSub: Send + Sync {
    /// Sends to all present subscribers; says how many these are.
    async fn publish(&self, channel: &str, payload: Bytes) -> Result<u64>;

    /// Everything that is published after this returns.
    async fn subscribe(&self, channel: &str) -> Result<Subscription>;
}

/// The place of an entry in its stream; [`EntryId::START`] is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since the epoch at which it was appended, unless the clock went backwards.
    pub millis: u64,
    /// Its number among those of the millisecond.
    pub sequence: u64,
}

impl EntryId {
    /// Before every entry.
    pub const START: Self = Self {
        millis: 0,
        sequence: 0,
    };
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

/// An entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    pub id: EntryId,
    pub payload: Bytes,
}

/// Short histories that readers walk at their own pace. A reader slower than the trimming misses entries: what may not be
/// missed belongs in the database.
#[async_trait]
pub trait Streams: Send + Sync {
    /// Appends entries, one after the other, between which those of others may come, and trims the oldest beyond `max_len`;
    /// says their ids, which grow strictly within a stream.
    async fn append(&self, stream: &str, payloads: &[Bytes], max_len: usize) -> Result<Vec<EntryId>>;

    /// Up to `limit` entries after `after`, oldest first; nothing when there are none yet.
    async fn read(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>>;

    /// As [`Streams::read`], but waits for at least one entry.
    async fn follow(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>>;

    /// Forgets a stream with all its entries.
    async fn drop_stream(&self, stream: &str) -> Result<()>;
}

/// Who was heard of when, and what each of them has: agents and their images (`agent-protocol.md` 3.4 to 3.6).
#[async_trait]
pub trait Heartbeats: Send + Sync {
    /// Notes when members were heard of. True when all of them were known already: the broker has forgotten nothing.
    async fn beat(&self, beats: &[(String, DateTime<Utc>)]) -> Result<bool>;

    /// When each member was last heard of, to the microsecond.
    async fn last_seen(&self) -> Result<BTreeMap<String, DateTime<Utc>>>;

    /// Notes that `member` has `things` and nothing else.
    async fn hold(&self, member: &str, things: &[String]) -> Result<()>;

    /// How many members have each of `things`, in their order.
    async fn holders(&self, things: &[String]) -> Result<Vec<u64>>;

    /// The members that have `thing`.
    async fn members_with(&self, thing: &str) -> Result<BTreeSet<String>>;

    /// Forgets a member with all that it has.
    async fn forget(&self, member: &str) -> Result<()>;
}

/// All uses of one broker. All methods give a retryable error when it cannot be reached. The names of cached
/// values, counters, rate windows, locks, channels, streams and members are separate spaces.
pub trait Broker: Cache + Counters + Locks + PubSub + Streams + Heartbeats + std::fmt::Debug {}

impl<T: Cache + Counters + Locks + PubSub + Streams + Heartbeats + std::fmt::Debug> Broker for T {}

/// Opens the broker at `uri`:
///
/// * `memory:`: this process alone sees it.
/// * `redis://[[user]:password@]host[:port][?timeout=3]`, or `rediss://…[?ca=/path.pem]` with TLS: user and password
///   percent-encoded; `timeout` in seconds for every call; `ca` in place of the system's authorities. The server is not
///   asked yet, because the broker may be absent at any time: calls tell.
///
/// # Errors
/// [`Terminal::Address`] for any other or malformed address.
#[expect(
    clippy::unused_async,
    reason = "callers wait for every service in the same way"
)]
pub async fn open(uri: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Broker>> {
    if uri == "memory:" {
        return Ok(Arc::new(MemoryBroker::new(clock)));
    }
    match uri.split_once("://") {
        Some((scheme @ ("redis" | "rediss"), rest)) => Ok(Arc::new(RedisBroker::new(scheme, rest)?)),
        // Not the address itself: there may be a password in it.
        _ => Err(Terminal::Address(
            "not the address of a broker; use redis://host:port, rediss://host:port or memory:".to_owned(),
        )
        .into()),
    }
}
