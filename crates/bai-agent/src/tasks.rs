//! The tasks of an agent: each has a name, all are waited for at shutdown.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks by name and waits for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Runs `work` to its end, whoever waits for it. A panic in it is the join error of whoever waits, and otherwise
    /// in the log by way of the panic hook.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn(async move {
            tracing::trace!(task = name, "task started");
            let output = work.await;
            tracing::trace!(task = name, "task ended");
            output
        })
    }

    /// Runs `work` until it ends or the agent stops, for what may be cut off anywhere.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = self.stopping.clone();
        // Dropping the handle detaches the task; the tracker keeps it.
        drop(self.spawn(name, async move {
            _ = stopping.run_until_cancelled(work).await;
        }));
    }

    /// Ends what was spawned until stopped.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits for every task.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs blocking work on the pool for it. `None` if the work panicked or the process is going down.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work)
        .await
        .inspect_err(|error| tracing::error!(%error, "blocking work failed"))
        .ok()
}
