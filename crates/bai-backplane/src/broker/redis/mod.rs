//! The broker of a cluster: Redis 6 and later (`redis://`, `rediss://`), in the databases of 19.06
//! (`agent-protocol.md` 3.6), so that managers and agents of both kinds see and count the same.
//!
//! | Database | Keys | Here |
//! | --- | --- | --- |
//! | 0 | ids of agents and kernels, and what callers cache beside them | cached values, by their plain names |
//! | 1 | access keys, `__request_id`; the original empties it when it stops | rate windows, by their plain names |
//! | 2 | `last_seen` | heartbeats |
//! | 3 | canonical image references | what members have |
//! | 4 | ours: `counter:…`, `lock:…`, `lock-token`, `stream:…` | counters, locks, streams |
//!
//! Channels belong to no database and begin with `bai:`.
//!
//! Invariants: every call ends within its deadline; a lost connection is replaced by the next call; scripts that the
//! server has forgotten are sent again; time is the server's, except where a caller passes it.
//!
//! Not here: anything that would be missed. Redis may be emptied at any moment.

mod address;
mod heartbeats;
mod lane;
mod lock;
mod pubsub;
mod script;
mod stream;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::{Cmd, cmd};

use self::address::Server;
use self::lane::{Lane, Repeat};
use self::script::Script;
use self::stream::Followers;
use super::{Cache, Counters};
use crate::Result;

/// Values that expire; the original's agents write statistics here.
const CACHE_DB: i64 = 0;
/// The original's rate limiter.
const RATE_DB: i64 = 1;
/// When agents were heard of.
const SEEN_DB: i64 = 2;
/// Which agents have an image.
const THINGS_DB: i64 = 3;
/// What the original does not know of.
const OWN_DB: i64 = 4;

/// A broker on a Redis server.
#[derive(Debug)]
pub struct RedisBroker {
    server: Arc<Server>,
    cache: Lane,
    rates: Lane,
    seen: Lane,
    things: Lane,
    own: Arc<Lane>,
    followers: Followers,
    hit: Script,
    hold: Script,
    holders: Script,
    forget: Script,
    lock: Script,
    renew: Script,
    unlock: Arc<Script>,
    /// Tells the lockers of this process from those of others.
    locker: u64,
    lockings: AtomicU64,
}

impl RedisBroker {
    /// The broker at an address with the options of [`super::open`]. Says nothing to the server yet.
    ///
    /// # Errors
    /// [`crate::Terminal::Address`] for an address or certificate that cannot be used.
    pub(crate) fn new(scheme: &str, rest: &str) -> Result<Self> {
        let server = Arc::new(Server::parse(scheme, rest)?);
        let lane = |database| Lane::new(Arc::clone(&server), database);
        Ok(Self {
            cache: lane(CACHE_DB)?,
            rates: lane(RATE_DB)?,
            seen: lane(SEEN_DB)?,
            things: lane(THINGS_DB)?,
            own: Arc::new(lane(OWN_DB)?),
            followers: Followers::new(server.client(OWN_DB)?),
            server,
            hit: Script::new(include_str!("hit.lua")),
            hold: Script::new(include_str!("hold.lua")),
            holders: Script::new(include_str!("holders.lua")),
            forget: Script::new(include_str!("forget.lua")),
            lock: Script::new(include_str!("lock.lua")),
            renew: Script::new(include_str!("renew.lua")),
            unlock: Arc::new(Script::new(include_str!("unlock.lua"))),
            // Decides nothing and is told to nobody; it only has to differ between processes.
            locker: RandomState::new().hash_one(()),
            lockings: AtomicU64::new(0),
        })
    }
}

/// Milliseconds as Redis takes them: at least one, at most a century, because it refuses moments beyond its clock.
fn millis(ttl: Duration) -> u64 {
    const CENTURY: u64 = 100 * 365 * 24 * 3600 * 1000;
    u64::try_from(ttl.as_millis()).map_or(CENTURY, |millis| millis.clamp(1, CENTURY))
}

#[async_trait]
impl Cache for RedisBroker {
    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        // Not GET, which is an error where agents before 19.06 left a hash.
        let values = self.get_many(&[key.to_owned()]).await?;
        Ok(values.into_iter().next().flatten())
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<Option<Vec<u8>>> = self.cache.ask(Repeat::Yes, cmd("MGET").arg(keys)).await?;
        Ok(values.into_iter().map(|value| value.map(Bytes::from)).collect())
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()> {
        let mut set = Cmd::new();
        set.arg("SET").arg(key).arg(&value[..]).arg("PX").arg(millis(ttl));
        self.cache.ask(Repeat::Yes, &set).await
    }

    async fn remove(&self, key: &str) -> Result<bool> {
        self.cache.ask(Repeat::No, cmd("DEL").arg(key)).await
    }
}

#[async_trait]
impl Counters for RedisBroker {
    async fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let mut add = Cmd::new();
        add.arg("INCRBY").arg(format!("counter:{key}")).arg(amount);
        self.own.ask(Repeat::No, &add).await
    }

    async fn hit(&self, key: &str, now: DateTime<Utc>, window: Duration) -> Result<u64> {
        let now = decimal(now.timestamp_millis());
        let oldest_millis = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let arguments = [now, decimal(oldest_millis), millis(window).to_string()];
        // Counted twice in the worst case, as any request that is sent twice.
        self.rates.run(Repeat::Yes, &self.hit, key, &arguments).await
    }
}

/// Milliseconds as seconds with exactly three decimals.
fn decimal(millis: i64) -> String {
    format!("{}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000))
}
