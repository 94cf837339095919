//! The store inside this process: an ordered map in memory, with or without a file under it.
//!
//! Invariants: reads take the map's lock and touch neither file nor task, except that the first read after a lease has
//! run out waits for its keys to be removed. One task makes all changes; writes that arrive while a commit is under way
//! share the next one. A change is visible only after it is durable. The task ends when the store is dropped, after the
//! writes that it had accepted; watches end with it.
//!
//! Not here: what a request changes (`draft.rs`), the file's format (`journal.rs`).

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::time::Clock;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::draft::{Draft, Drafting};
use super::journal::Journal;
use super::tree::Tree;
use super::{ConfigKv, KeyValue, LeaseId, Listing, Revision, Txn, TxnOutcome, Watch};
use crate::{Error, Result};

/// Requests that may wait for the writing task; more wait in their callers.
const QUEUE: usize = 256;
/// How late at most a lease ends when nobody reads or writes.
const TICK: Duration = Duration::from_millis(500);

/// The embedded store (`embedded:///path/file.db`) and the one without a file (`memory:`).
#[derive(Debug)]
pub struct LocalKv {
    tree: Arc<RwLock<Tree>>,
    clock: Arc<dyn Clock>,
    requests: mpsc::Sender<Request>,
    /// The latest visible revision. The sender is the writing task's.
    revisions: watch::Receiver<Revision>,
}

impl LocalKv {
    /// A store that forgets everything when it is dropped. Must be called within a tokio runtime.
    pub fn memory(clock: Arc<dyn Clock>) -> Self {
        Self::start(Tree::empty(), None, clock)
    }

    /// Opens the store in a file, which is made when missing, readable by its owner only. Its folder must exist.
    ///
    /// # Errors
    /// [`crate::Terminal::Unusable`] for a file that is not such a store or was written by a newer version;
    /// [`Error::Retryable`] when it cannot be reached or another process has it open.
    pub async fn embedded(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut journal = Journal::open(path).await?;
        let tree = journal.load(clock.now()).await?;
        Ok(Self::start(tree, Some(journal), clock))
    }

    fn start(tree: Tree, journal: Option<Journal>, clock: Arc<dyn Clock>) -> Self {
        let (published, revisions) = watch::channel(tree.revision);
        let tree = Arc::new(RwLock::new(tree));
        let (requests, inbox) = mpsc::channel(QUEUE);
        let writer = Writer {
            tree: Arc::clone(&tree),
            clock: Arc::clone(&clock),
            journal,
            suspect: false,
            published,
        };
        tokio::spawn(writer.run(inbox));
        Self {
            tree,
            clock,
            requests,
            revisions,
        }
    }

    /// Hands a request to the writing task and waits for its answer, which comes after the commit.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Error::Retryable("the configuration store has stopped".to_owned());
        self.requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Reads the map, after the keys of ended leases are gone.
    async fn read<T>(&self, read: impl FnOnce(&Tree) -> T) -> Result<T> {
        let due = peek(&self.tree, |tree| tree.is_due(self.clock.now()));
        if due {
            self.ask(Request::Sweep).await?;
        }
        Ok(peek(&self.tree, read))
    }
}

/// Reads the map as it is. It is valid after any panic: only [`Tree::apply`] changes it.
fn peek<T>(tree: &RwLock<Tree>, read: impl FnOnce(&Tree) -> T) -> T {
    read(&tree.read().unwrap_or_else(PoisonError::into_inner))
}

#[async_trait]
impl ConfigKv for LocalKv {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        self.read(|tree| tree.get(key)).await
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Listing> {
        self.read(|tree| tree.list(prefix)).await
    }

    async fn transact(&self, txn: Txn) -> Result<TxnOutcome> {
        self.ask(|reply| Request::Transact(txn, reply)).await
    }

    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch> {
        let next = match from {
            Some(from) => from,
            None => self.read(|tree| tree.revision.next()).await?,
        };
        let watcher = Watcher {
            tree: Arc::clone(&self.tree),
            prefix: prefix.to_owned(),
            next,
            revisions: self.revisions.clone(),
        };
        let batches = stream::unfold(watcher, |mut watcher| async move {
            let events = watcher.next_events().await?;
            Some((stream::iter(events), watcher))
        });
        Ok(batches.flatten().boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.ask(|reply| Request::Grant(ttl, reply)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        self.ask(|reply| Request::KeepAlive(lease, reply)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.ask(|reply| Request::Revoke(lease, reply)).await
    }
}

/// A place in the history. Holds no events itself, so that a slow reader costs nothing.
struct Watcher {
    tree: Arc<RwLock<Tree>>,
    prefix: String,
    next: Revision,
    revisions: watch::Receiver<Revision>,
}

impl Watcher {
    /// Waits for events; `None` when the store has ended.
    async fn next_events(&mut self) -> Option<Vec<super::WatchEvent>> {
        loop {
            self.revisions.mark_unchanged();
            let events = peek(&self.tree, |tree| {
                let events = tree.events_since(&self.prefix, self.next);
                self.next = self.next.max(tree.revision.next());
                events
            });
            if !events.is_empty() {
                return Some(events);
            }
            self.revisions.changed().await.ok()?;
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T>>;

#[derive(Debug)]
enum Request {
    Transact(Txn, Reply<TxnOutcome>),
    Grant(Duration, Reply<LeaseId>),
    KeepAlive(LeaseId, Reply<()>),
    Revoke(LeaseId, Reply<()>),
    /// Does nothing itself: every batch begins with the end of leases.
    Sweep(Reply<()>),
}

/// An answer that waits for the commit.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

impl Request {
    fn draft(self, drafting: &mut Drafting<'_>) -> Answer {
        fn after_commit<T: Send + 'static>(reply: Reply<T>, outcome: Result<T>) -> Answer {
            // A caller that is gone needs no answer.
            Box::new(move |committed| drop(reply.send(committed.and(outcome))))
        }
        match self {
            Self::Transact(txn, reply) => after_commit(reply, drafting.transact(&txn)),
            Self::Grant(ttl, reply) => after_commit(reply, Ok(drafting.grant(ttl))),
            Self::KeepAlive(lease, reply) => after_commit(reply, drafting.keep_alive(lease)),
            Self::Revoke(lease, reply) => after_commit(reply, drafting.revoke(lease)),
            Self::Sweep(reply) => after_commit(reply, Ok(())),
        }
    }
}

/// The one task that changes the map.
struct Writer {
    tree: Arc<RwLock<Tree>>,
    clock: Arc<dyn Clock>,
    journal: Option<Journal>,
    /// A commit failed, and whether it reached the file is not known: read the file again before going on.
    suspect: bool,
    published: watch::Sender<Revision>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(QUEUE);
        loop {
            tokio::select! {
                received = inbox.recv_many(&mut batch, QUEUE) => if received == 0 { break },
                _ = tick.tick() => {
                    let due = peek(&self.tree, |tree| tree.is_due(self.clock.now()));
                    if !due && !self.suspect {
                        continue;
                    }
                }
            }
            self.serve(&mut batch).await;
        }
        if let Some(journal) = self.journal {
            journal.close().await;
        }
    }

    /// Carries out a batch as one durable commit and answers everyone.
    async fn serve(&mut self, batch: &mut Vec<Request>) {
        let sound = self.recover().await;
        let (draft, answers) = {
            let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
            let mut drafting = Drafting::begin(&tree, self.clock.now());
            let answers: Vec<Answer> = batch
                .drain(..)
                .map(|request| request.draft(&mut drafting))
                .collect();
            (drafting.finish(), answers)
        };
        let committed = match sound {
            Ok(()) => self.commit(draft).await,
            Err(error) => Err(error),
        };
        for answer in answers {
            answer(committed.clone());
        }
    }

    /// After a failed commit: makes the file's state the map's, whichever way the commit went.
    async fn recover(&mut self) -> Result<()> {
        if self.suspect
            && let Some(journal) = &mut self.journal
        {
            let tree = journal.recover(self.clock.now()).await?;
            self.publish(|stale| *stale = tree);
            self.suspect = false;
        }
        Ok(())
    }

    async fn commit(&mut self, draft: Draft) -> Result<()> {
        if let Some(journal) = &mut self.journal
            && draft.durable
            && let Err(error) = journal.write(&draft).await
        {
            tracing::error!(%error, "a write to the configuration store failed");
            self.suspect = true;
            return Err(error);
        }
        self.publish(|tree| tree.apply(draft));
        Ok(())
    }

    fn publish(&self, change: impl FnOnce(&mut Tree)) {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut tree);
        let revision = tree.revision;
        drop(tree);
        self.published
            .send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
    }
}
