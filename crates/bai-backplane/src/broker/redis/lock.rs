//! Locks (`lock:…`): a value "token name" that expires, changed by scripts only.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::lane::{Lane, Repeat};
use super::script::Script;
use super::{RedisBroker, millis};
use crate::Result;
use crate::broker::{Lock, Locks};

/// How often a waiter looks.
const POLL: Duration = Duration::from_millis(50);

#[async_trait]
impl Locks for RedisBroker {
    async fn try_lock(&self, name: &str, ttl: Duration) -> Result<Option<Lock>> {
        let attempt = Attempt::new(self, name);
        let arguments = [millis(ttl).to_string(), attempt.locker.clone()];
        let token: Option<u64> = self
            .own
            .run(Repeat::No, &self.lock, &attempt.key, &arguments)
            .await?;
        attempt.has_its_answer();
        Ok(token.map(|token| Lock {
            name: name.to_owned(),
            token,
        }))
    }

    async fn lock(&self, name: &str, ttl: Duration) -> Result<Lock> {
        loop {
            if let Some(lock) = self.try_lock(name, ttl).await? {
                return Ok(lock);
            }
            sleep(POLL).await;
        }
    }

    async fn renew(&self, lock: &Lock, ttl: Duration) -> Result<bool> {
        let arguments = [lock.token.to_string(), millis(ttl).to_string()];
        self.own
            .run(Repeat::Yes, &self.renew, &key(&lock.name), &arguments)
            .await
    }

    async fn unlock(&self, lock: &Lock) -> Result<bool> {
        let arguments = [lock.token.to_string()];
        self.own
            .run(Repeat::No, &self.unlock, &key(&lock.name), &arguments)
            .await
    }
}

fn key(name: &str) -> String {
    format!("lock:{name}")
}

/// An attempt that may have succeeded although nobody learns of it, because its caller gave up or the answer was lost.
/// Then it is undone, under a name that no other attempt has; should that fail too, the lock runs out.
struct Attempt {
    lane: Arc<Lane>,
    unlock: Arc<Script>,
    key: String,
    locker: String,
    open: bool,
}

impl Attempt {
    fn new(broker: &RedisBroker, name: &str) -> Self {
        let number = broker.lockings.fetch_add(1, Ordering::Relaxed);
        Self {
            lane: Arc::clone(&broker.own),
            unlock: Arc::clone(&broker.unlock),
            key: key(name),
            locker: format!("{:016x}.{number}", broker.locker),
            open: true,
        }
    }

    fn has_its_answer(mut self) {
        self.open = false;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (lane, unlock) = (Arc::clone(&self.lane), Arc::clone(&self.unlock));
        let (key, locker) = (std::mem::take(&mut self.key), std::mem::take(&mut self.locker));
        // Ends with its deadline, whatever happens.
        runtime.spawn(async move {
            let undone: Result<bool> = lane.run(Repeat::Yes, &unlock, &key, &[locker]).await;
            if let Err(error) = undone {
                tracing::debug!(key, %error, "a lock that nobody waits for may be held until it runs out");
            }
        });
    }
}
