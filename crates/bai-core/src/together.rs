//! Work of one kind that waits is done together, in one unit of work: what costs is round trips and commits
//! (`docs/adr/0018-recording-together.md`).
//!
//! Invariants: nobody waits for company; when several fail together, each is tried for itself, so that nobody fails because
//! of others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::{Error, Manager, Result};

/// How many are done together at most.
const TOGETHER: usize = 64;

/// A piece of work that can be done together with others.
pub(crate) trait Joint: Send + Sync + Sized + 'static {
    /// What came of it.
    type Outcome: std::fmt::Debug + Send;

    /// What it is, for messages.
    const NAME: &str;

    /// Where it waits.
    fn waiting(manager: &Manager) -> &Waiting<Self>;

    /// Does all or nothing; says of each in turn what came of it, or why it is refused.
    ///
    /// # Errors
    /// When none is done.
    fn do_all(
        manager: &Manager,
        all: &[&Self],
    ) -> impl Future<Output = Result<Vec<Result<Self::Outcome>>>> + Send;
}

/// What waits, in its order.
#[derive(Debug)]
pub(crate) struct Waiting<W: Joint>(Mutex<Queue<W>>);

#[derive(Debug)]
struct Queue<W: Joint> {
    orders: Vec<Order<W>>,
    is_worked_at: bool,
}

#[derive(Debug)]
struct Order<W: Joint> {
    work: W,
    answer: oneshot::Sender<Result<W::Outcome>>,
}

impl<W: Joint> Default for Queue<W> {
    fn default() -> Self {
        Self {
            orders: Vec::new(),
            is_worked_at: false,
        }
    }
}

impl<W: Joint> Default for Waiting<W> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<W: Joint> Waiting<W> {
    fn lock(&self) -> MutexGuard<'_, Queue<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when somebody has to begin to work.
    fn put(&self, order: Order<W>) -> bool {
        let mut queue = self.lock();
        queue.orders.push(order);
        !std::mem::replace(&mut queue.is_worked_at, true)
    }

    /// The next ones; none at the end of the work.
    fn take(&self) -> Vec<Order<W>> {
        let mut queue = self.lock();
        // A power of two, so that few different statements are prepared.
        let together = match queue.orders.len().min(TOGETHER).checked_ilog2() {
            Some(log) => 1 << log,
            None => 0,
        };
        queue.is_worked_at = together > 0;
        queue.orders.drain(..together).collect()
    }
}

/// Should the work panic, those who wait are told by their channels, and the next one begins anew.
struct Working<'a, W: Joint>(&'a Waiting<W>);

impl<W: Joint> Drop for Working<'_, W> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.lock() = Queue::default();
        }
    }
}

impl Manager {
    /// Does a piece of work together with what waits. It is done even if nobody waits for the answer any more.
    pub(crate) async fn join_in<W: Joint>(self: &Arc<Self>, work: W) -> Result<W::Outcome> {
        let (answer, done) = oneshot::channel();
        if W::waiting(self).put(Order { work, answer }) {
            let manager = Arc::clone(self);
            self.tasks.spawn(async move {
                let waiting = W::waiting(&manager);
                let _working = Working(waiting);
                loop {
                    let orders = waiting.take();
                    if orders.is_empty() {
                        return;
                    }
                    manager.do_orders(orders).await;
                }
            });
        }
        done.await.unwrap_or_else(|_| {
            Err(Error::Internal(format!(
                "{} broke off; the log says why",
                W::NAME
            )))
        })
    }

    async fn do_orders<W: Joint>(&self, orders: Vec<Order<W>>) {
        let together = {
            let all: Vec<&W> = orders.iter().map(|order| &order.work).collect();
            W::do_all(self, &all).await
        };
        match together {
            Ok(outcomes) => {
                for (order, outcome) in orders.into_iter().zip(outcomes) {
                    // Whoever went away looks at the record when it comes again.
                    _ = order.answer.send(outcome);
                }
            }
            Err(error) if orders.len() > 1 => {
                tracing::debug!(%error, count = orders.len(), work = W::NAME, "done one by one");
                for Order { work, answer } in orders {
                    let outcome = W::do_all(self, &[&work]).await.and_then(|mut outcomes| {
                        let nothing = || Error::Internal(format!("{} was not done", W::NAME));
                        outcomes.pop().ok_or_else(nothing)?
                    });
                    _ = answer.send(outcome);
                }
            }
            Err(error) => {
                if let Some(order) = orders.into_iter().next() {
                    _ = order.answer.send(Err(error));
                }
            }
        }
    }
}
