//! The broker inside this process.
//!
//! Invariants: every operation is one short critical section of a std mutex, never held over an await. Memory is bounded
//! by what is alive: expired values, locks and rate windows are never seen again and are swept when a map has taken as many
//! writes as it has entries; channels without subscribers vanish; a channel keeps at most [`SUBSCRIBER_BACKLOG`] messages,
//! a rate window at most one number per millisecond, a stream what its writers allow. Plain counters, streams and members
//! stay until they are dropped or the broker is.
//!
//! Not here: tasks. Nothing runs in the background, so nothing outlives the broker.

mod expiring;
mod heartbeats;
mod log;
mod window;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::time::Clock;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::{self, StreamExt};
use tokio::sync::{broadcast, watch};

use self::expiring::Expiring;
use self::heartbeats::Member;
use self::log::StreamLog;
use self::window::RateWindow;
use super::{
    Cache, Counters, EntryId, Lock, Locks, Message, PubSub, SUBSCRIBER_BACKLOG, StreamEntry, Streams,
    Subscription,
};
use crate::Result;

/// How often a waiter for a lock looks at the clock, besides being woken by a release.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The broker of the embedded profile (`memory:`).
#[derive(Debug)]
pub struct MemoryBroker {
    clock: Arc<dyn Clock>,
    cache: Mutex<Expiring<Bytes>>,
    counters: Mutex<HashMap<String, i64>>,
    windows: Mutex<Expiring<RateWindow>>,
    locks: Mutex<LockTable>,
    /// Changes with every release of a lock.
    released: watch::Sender<()>,
    channels: Mutex<HashMap<String, broadcast::Sender<Bytes>>>,
    streams: Mutex<HashMap<String, StreamLog>>,
    /// Changes with every append to a stream.
    appended: watch::Sender<()>,
    members: Mutex<BTreeMap<String, Member>>,
}

#[derive(Debug, Default)]
struct LockTable {
    held: Expiring<u64>,
    last_token: u64,
}

impl MemoryBroker {
    /// An empty broker.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            cache: Mutex::default(),
            counters: Mutex::default(),
            windows: Mutex::default(),
            locks: Mutex::default(),
            released: watch::Sender::new(()),
            channels: Mutex::default(),
            streams: Mutex::default(),
            appended: watch::Sender::new(()),
            members: Mutex::default(),
        }
    }

    fn take_lock(&self, name: &str, ttl: Duration) -> Option<Lock> {
        let now = self.clock.now();
        let mut locks = enter(&self.locks);
        if locks.held.get(name, now).is_some() {
            return None;
        }
        locks.last_token += 1;
        let token = locks.last_token;
        locks.held.set(name, token, ttl, now);
        Some(Lock {
            name: name.to_owned(),
            token,
        })
    }
}

/// Every critical section leaves its map whole at any point where it could panic.
fn enter<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Cache for MemoryBroker {
    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let now = self.clock.now();
        Ok(enter(&self.cache).get(key, now).cloned())
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>> {
        let now = self.clock.now();
        let mut cache = enter(&self.cache);
        Ok(keys.iter().map(|key| cache.get(key, now).cloned()).collect())
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()> {
        let now = self.clock.now();
        enter(&self.cache).set(key, value, ttl, now);
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<bool> {
        let now = self.clock.now();
        Ok(enter(&self.cache).remove(key, now).is_some())
    }
}

#[async_trait]
impl Counters for MemoryBroker {
    async fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let mut counters = enter(&self.counters);
        let counter = counters.entry(key.to_owned()).or_default();
        *counter = counter.saturating_add(amount);
        Ok(*counter)
    }

    async fn hit(&self, key: &str, now: DateTime<Utc>, window: Duration) -> Result<u64> {
        let clock = self.clock.now();
        let mut windows = enter(&self.windows);
        let mut hits = windows.remove(key, clock).unwrap_or_default();
        let count = hits.hit(now, window);
        windows.set(key, hits, window, clock);
        Ok(count)
    }
}

#[async_trait]
impl Locks for MemoryBroker {
    async fn try_lock(&self, name: &str, ttl: Duration) -> Result<Option<Lock>> {
        Ok(self.take_lock(name, ttl))
    }

    async fn lock(&self, name: &str, ttl: Duration) -> Result<Lock> {
        let mut released = self.released.subscribe();
        loop {
            released.mark_unchanged();
            if let Some(lock) = self.take_lock(name, ttl) {
                return Ok(lock);
            }
            // Time out or release: either way, look again.
            let _ = tokio::time::timeout(LOCK_POLL, released.changed()).await;
        }
    }

    async fn renew(&self, lock: &Lock, ttl: Duration) -> Result<bool> {
        let now = self.clock.now();
        let mut locks = enter(&self.locks);
        let held = locks.held.get(&lock.name, now) == Some(&lock.token);
        if held {
            locks.held.set(&lock.name, lock.token, ttl, now);
        }
        Ok(held)
    }

    async fn unlock(&self, lock: &Lock) -> Result<bool> {
        let now = self.clock.now();
        let mut locks = enter(&self.locks);
        let held = locks.held.get(&lock.name, now) == Some(&lock.token);
        if held {
            locks.held.remove(&lock.name, now);
            self.released.send_replace(());
        }
        Ok(held)
    }
}

#[async_trait]
impl PubSub for MemoryBroker {
    async fn publish(&self, channel: &str, payload: Bytes) -> Result<u64> {
        let mut channels = enter(&self.channels);
        let Some(sender) = channels.get(channel) else {
            return Ok(0);
        };
        match sender.send(payload) {
            Ok(receivers) => Ok(receivers.try_into().unwrap_or(u64::MAX)),
            Err(_) => {
                channels.remove(channel);
                Ok(0)
            }
        }
    }

    async fn subscribe(&self, channel: &str) -> Result<Subscription> {
        let mut channels = enter(&self.channels);
        channels.retain(|_, sender| sender.receiver_count() > 0);
        let sender = channels
            .entry(channel.to_owned())
            .or_insert_with(|| broadcast::Sender::new(SUBSCRIBER_BACKLOG));
        let messages = stream::unfold(sender.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(payload) => Some((Message::Payload(payload), receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Message::Gap, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Ok(messages.boxed())
    }
}

#[async_trait]
impl Streams for MemoryBroker {
    async fn append(&self, stream: &str, payloads: &[Bytes], max_len: usize) -> Result<Vec<EntryId>> {
        let now = self.clock.now();
        let mut streams = enter(&self.streams);
        let log = streams.entry(stream.to_owned()).or_default();
        let ids = payloads
            .iter()
            .map(|payload| log.append(payload.clone(), max_len, now))
            .collect();
        drop(streams);
        self.appended.send_replace(());
        Ok(ids)
    }

    async fn read(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>> {
        Ok(enter(&self.streams)
            .get(stream)
            .map(|log| log.read(after, limit))
            .unwrap_or_default())
    }

    async fn follow(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>> {
        let mut appended = self.appended.subscribe();
        loop {
            appended.mark_unchanged();
            let entries = self.read(stream, after, limit.max(1)).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            // The sender is ours and lives as long as this call.
            let _ = appended.changed().await;
        }
    }

    async fn drop_stream(&self, stream: &str) -> Result<()> {
        enter(&self.streams).remove(stream);
        Ok(())
    }
}
