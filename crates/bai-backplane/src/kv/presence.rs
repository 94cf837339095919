//! Keys that stand for as long as their owner lives: the registration of a manager, the presence of a node.
//!
//! Invariants: the keys vanish at the latest a ttl after their owner did. While it lives they come back at once, also when
//! somebody deleted them or the store lost everything; a key that somebody else has written stays theirs, until they are
//! gone: of several owners of a key one that lives has it.
//!
//! Not here: which keys these are (`agent-protocol.md` 4.2, 4.3).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Change, ConfigKv, Expect, LeaseId, Txn, Watch, WatchEvent};
use crate::{Error, Result, Terminal};

/// Keeps keys in the store. Dropping it lets them run out; [`Presence::withdraw`] deletes them now.
#[derive(Debug)]
pub struct Presence {
    /// Dropped or used: either ends the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Presence {
    /// Writes `pairs` (physical keys) under a lease of `ttl`, and keeps it alive from now on.
    ///
    /// # Errors
    /// As [`ConfigKv::transact`]: nothing stands then.
    pub async fn announce(
        kv: Arc<dyn ConfigKv>,
        pairs: Vec<(String, String)>,
        ttl: Duration,
    ) -> Result<Self> {
        let mut keeper = Keeper {
            kv,
            pairs,
            ttl,
            lease: None,
        };
        keeper.write().await?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keeper.run(stopped));
        Ok(Self { stop, task })
    }

    /// Deletes the keys. When the store cannot be reached they run out.
    pub async fn withdraw(self) {
        // The task ends by itself in no other way.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

struct Keeper {
    kv: Arc<dyn ConfigKv>,
    pairs: Vec<(String, String)>,
    ttl: Duration,
    lease: Option<LeaseId>,
}

impl Keeper {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut watch = None;
        loop {
            tokio::select! {
                withdrawn = &mut stopped => {
                    if withdrawn.is_ok() {
                        self.delete().await;
                    }
                    return;
                }
                () = sleep(self.ttl / 3) => {}
                () = self.absence(&mut watch) => {}
            }
            if let Err(error) = self.keep().await {
                tracing::warn!(%error, "presence in the configuration store could not be renewed");
            }
        }
    }

    /// Ends when a key may be missing. While the store cannot tell, it does not end.
    async fn absence(&self, watch: &mut Option<Watch>) {
        let Some(events) = watch else {
            match self.kv.watch(&self.common_prefix(), None).await {
                // What was before nobody tells.
                Ok(events) => return *watch = Some(events),
                Err(_) => return std::future::pending().await,
            }
        };
        let is_ours = |key: &str| self.pairs.iter().any(|(own, _)| own == key);
        loop {
            match events.next().await {
                Some(WatchEvent::Changes { changes, .. }) => {
                    let mut changes = changes.iter();
                    if changes.any(|change| matches!(change, Change::Delete { key } if is_ours(key))) {
                        return;
                    }
                }
                Some(WatchEvent::Resync { .. }) => return,
                // The store has ended.
                None => std::future::pending().await,
            }
        }
    }

    fn common_prefix(&self) -> String {
        let mut keys = self.pairs.iter().map(|(key, _)| key.as_str());
        let first = keys.next().unwrap_or_default();
        let shared = |one: &str, other: &str| {
            let same = one
                .chars()
                .zip(other.chars())
                .take_while(|(one, other)| one == other);
            same.map(|(one, _)| one).collect::<String>()
        };
        keys.fold(first.to_owned(), |prefix, key| shared(&prefix, key))
    }

    /// Writes all keys under a new lease.
    async fn write(&mut self) -> Result<()> {
        let lease = self.kv.grant(self.ttl).await?;
        let mut txn = Txn::new();
        for (key, value) in &self.pairs {
            txn = txn.put_leased(key, value, lease);
        }
        self.kv.transact(txn).await?;
        self.lease = Some(lease);
        Ok(())
    }

    async fn keep(&mut self) -> Result<()> {
        let Some(lease) = self.lease else {
            return self.write().await;
        };
        match self.kv.keep_alive(lease).await {
            Err(Error::Terminal(Terminal::LeaseGone(_))) => {
                self.lease = None;
                self.write().await
            }
            kept => {
                kept?;
                for (key, value) in &self.pairs {
                    let missing = Txn::new().when(key, Expect::Absent);
                    self.kv.transact(missing.put_leased(key, value, lease)).await?;
                }
                Ok(())
            }
        }
    }

    async fn delete(&self) {
        if let Some(lease) = self.lease
            && let Err(error) = self.kv.revoke(lease).await
        {
            tracing::warn!(%error, "presence in the configuration store could not be withdrawn and runs out");
        }
    }
}
