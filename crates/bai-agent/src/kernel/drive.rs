//! Drives the runs of one life of a kernel: activates them in turn, sends their requests, passes records on, and finds
//! the files that they made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bai_model::RunId;
use bai_proto::runner::{Record, Request};
use tokio::sync::mpsc;

use super::client::{Client, Unresponsive};
use super::output::Snapshot;
use super::run::Runs;
use super::state::note_active_run;
use crate::runtime::Runner;
use crate::tasks::blocking;

/// A step that does nothing and ends with [`FENCE_CODE`]: its end says that everything asked for before has ended.
const FENCE: &str = "exit 113";
const FENCE_CODE: i32 = 113;
/// What the same step prints for a runner of another agent. Those of 19.06's time do not all know `clean`, and after a
/// `build` that failed they leave the next step out.
const FENCE_WORD: &str = "bai-agent-has-taken-over";

/// What the driver works with.
#[derive(Debug)]
pub(crate) struct Driver {
    pub runs: Arc<Runs>,
    pub client: Arc<Client>,
    pub records: mpsc::Receiver<Record>,
    pub scratch: PathBuf,
    pub runner: Runner,
}

impl Driver {
    /// Works until the kernel is gone.
    pub async fn run(mut self) {
        if let Some(resumed) = self.runs.active() {
            self.finish_resumed().await;
            tracing::info!(run.id = %resumed, "a run of an earlier agent process ended");
        }
        while let Some((id, requests)) = self.next().await {
            let before = self.begin(id).await;
            // What came late from before has nothing to do with this run.
            while self.records.try_recv().is_ok() {}
            match self.send(requests).await {
                true => self.pass_on(before).await,
                false => self.give_up().await,
            }
        }
    }

    /// Passes on what is left of a run of an earlier agent process. That process may have been killed before it had
    /// sent all of the run or after it had seen its end, so a fence tells when nothing more can come.
    async fn finish_resumed(&mut self) {
        // What was there before the run is not known any more; what it makes from now on is told.
        let before = self.look(|scratch| Snapshot::take(&scratch.join("work"))).await;
        let is_own = self.runner.is_own();
        let fence = match is_own {
            true => Request::Clean(FENCE.to_owned()),
            false => Request::Build(format!("echo {FENCE_WORD}")),
        };
        if !self.send(vec![fence]).await {
            return;
        }
        let mut is_at_fence = false;
        while let Some(record) = self.records.recv().await {
            match record {
                Record::CleanFinished {
                    exit_code: Some(FENCE_CODE),
                } if is_own => break,
                Record::Stdout(bytes) if !is_own && bytes.trim_ascii() == FENCE_WORD.as_bytes() => {
                    is_at_fence = true;
                }
                Record::BuildFinished { .. } if is_at_fence => break,
                record @ Record::Finished { .. } => self.end(&before, record).await,
                record => self.runs.push(record).await,
            }
        }
        if self.runs.active().is_some() {
            self.end(&before, Record::Finished { exit_code: None }).await;
        }
    }

    /// The next run. Records that belong to none are read meanwhile and dropped.
    async fn next(&mut self) -> Option<(RunId, Vec<Request>)> {
        loop {
            tokio::select! {
                next = self.runs.next() => return next,
                record = self.records.recv() => drop(record?),
            }
        }
    }

    async fn send(&self, requests: Vec<Request>) -> bool {
        for request in requests {
            if let Err(error) = self.client.send(request).await {
                tracing::error!(%error, "a run could not be started");
                return false;
            }
        }
        true
    }

    /// Ends a run that could not be started, and tells whoever collects it why.
    async fn give_up(&self) {
        self.runs
            .push(Record::Stderr(format!("{Unresponsive}\n").into_bytes()))
            .await;
        self.runs
            .end(Record::Finished { exit_code: Some(127) }, Vec::new());
    }

    /// Gives the active run its records up to the last one.
    async fn pass_on(&mut self, before: Snapshot) {
        while let Some(record) = self.records.recv().await {
            if matches!(record, Record::Finished { .. }) {
                return self.end(&before, record).await;
            }
            self.runs.push(record).await;
        }
    }

    /// Notes that a run begins; what is in the output folder before it.
    async fn begin(&self, id: RunId) -> Snapshot {
        self.look(move |scratch| {
            note_active_run(scratch, Some(&id));
            Snapshot::take(&scratch.join("work"))
        })
        .await
    }

    /// Ends the active run and notes so.
    async fn end(&self, before: &Snapshot, last: Record) {
        let after = self.look(|scratch| {
            note_active_run(scratch, None);
            Snapshot::take(&scratch.join("work"))
        });
        let files = before.made_since(&after.await);
        self.runs.end(last, files);
    }

    async fn look(&self, look: impl FnOnce(&Path) -> Snapshot + Send + 'static) -> Snapshot {
        let scratch = self.scratch.clone();
        blocking(move || look(&scratch)).await.unwrap_or_default()
    }
}
