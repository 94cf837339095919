//! The runs of a kernel (`agent-protocol.md` 6.2): one queue of records for each, activated in the order in which they
//! were asked for.
//!
//! A run is *waiting* until those before it have ended, then *active*, then *ended*. Whoever executes it collects its
//! records, before or after its end; the next run does not wait for that.
//!
//! Invariants: at most one run is active; a queue holds at most [`MAX_RECORDS`] records and about [`MAX_BYTES`], then
//! whoever fills it waits; nothing collected is lost when a collector goes away.
//!
//! Not here: the connection (`client`), and who drives the runs (`drive`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bai_model::RunId;
use bai_proto::agent::{ExecuteReply, GeneratedFile, RunStatus};
use bai_proto::runner::{Record, Request};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::console::Console;

/// Records that wait in one run's queue.
pub(crate) const MAX_RECORDS: usize = 4096;
/// Bytes of records that wait in one run's queue; one record may exceed it.
const MAX_BYTES: usize = 16 << 20;
/// A reply is sent when its console is this large, however much more there is.
const MAX_REPLY: usize = 4 << 20;
/// Ended runs that nobody has collected, and their bytes; the oldest are forgotten.
const MAX_ENDED: usize = 256;
const MAX_ENDED_BYTES: usize = 16 << 20;
/// Runs that wait for their turn.
const MAX_WAITING: usize = 1024;

/// All runs of one life of a kernel.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    runs: HashMap<RunId, Run>,
    waiting: VecDeque<RunId>,
    active: Option<RunId>,
    ended: VecDeque<RunId>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Run {
    /// What to tell the runner when the run becomes active.
    requests: Vec<Request>,
    records: VecDeque<Record>,
    bytes: usize,
    console: Console,
    files: Vec<GeneratedFile>,
}

/// What to do with requests that were submitted.
#[derive(Debug, PartialEq)]
pub(crate) enum Submitted {
    /// They are sent when the run's turn comes.
    Queued,
    /// The run is active: send them now.
    SendNow(Vec<Request>),
    /// There is no such run.
    Unknown,
    /// Too many runs wait, or the kernel is gone.
    Refused,
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is completed before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run with `requests`, or adds them to the run of this name if it has not ended.
    pub fn start(&self, id: &RunId, requests: Vec<Request>) -> Submitted {
        let mut state = self.lock();
        if state.closed || state.waiting.len() >= MAX_WAITING {
            return Submitted::Refused;
        }
        if let Some(position) = state.ended.iter().position(|ended| ended == id) {
            // Clients use names again; what is left of the earlier run is of no interest.
            state.ended.remove(position);
            state.runs.remove(id);
        }
        if state.runs.contains_key(id) {
            return state.add(id, requests);
        }
        state.runs.insert(id.clone(), Run { requests, ..Run::default() });
        state.waiting.push_back(id.clone());
        self.changed.notify_waiters();
        Submitted::Queued
    }

    /// Adds requests to a run that has not ended.
    pub fn add(&self, id: &RunId, requests: Vec<Request>) -> Submitted {
        self.lock().add(id, requests)
    }

    /// A run that was active when an earlier agent process ended.
    pub fn resume(&self, id: RunId) {
        let mut state = self.lock();
        state.runs.insert(id.clone(), Run::default());
        state.active = Some(id);
    }

    /// The active run.
    pub fn active(&self) -> Option<RunId> {
        self.lock().active.clone()
    }

    /// Waits for a run's turn and makes it active. `None` when the kernel is gone.
    pub async fn next(&self) -> Option<(RunId, Vec<Request>)> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(id) = state.waiting.pop_front() {
                    let requests = state.runs.get_mut(&id).map(|run| std::mem::take(&mut run.requests));
                    state.active = Some(id.clone());
                    return Some((id, requests.unwrap_or_default()));
                }
            }
            changed.await;
        }
    }

    /// Gives the active run a record; waits while its queue is full. Dropped when no run is active.
    pub async fn push(&self, record: Record) {
        let size = size_of(&record);
        let mut record = Some(record);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                let Some(run) = state.active_run() else { return };
                if run.records.is_empty() || (run.records.len() < MAX_RECORDS && run.bytes + size <= MAX_BYTES) {
                    run.records.extend(record.take());
                    run.bytes += size;
                    self.changed.notify_waiters();
                    return;
                }
            }
            changed.await;
        }
    }

    /// Ends the active run with its last record and the files that it made.
    pub async fn end(&self, last: Record, files: Vec<GeneratedFile>) {
        if let Some(run) = self.lock().active_run() {
            // First, because the last record is collected as soon as it is there.
            run.files = files;
        }
        self.push(last).await;
        let mut state = self.lock();
        if let Some(id) = state.active.take()
            && state.runs.contains_key(&id)
        {
            state.ended.push_back(id);
        }
        state.forget_oldest();
        self.changed.notify_waiters();
    }

    /// Gathers what a run says until its next boundary, or until `deadline` (for ever if there is none). `None` when
    /// the kernel goes away; `continued` when there is no such run.
    pub async fn collect(&self, id: &RunId, deadline: Option<Instant>) -> Option<ExecuteReply> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let is_known = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let queued = state.queued(id);
                let reply = state.drain(id);
                if state.queued(id) < queued {
                    // There is room again.
                    self.changed.notify_waiters();
                }
                if reply.is_some() {
                    return reply;
                }
                state.runs.contains_key(id)
            };
            let is_due = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, changed).await.is_err(),
                None if is_known => {
                    changed.await;
                    false
                }
                None => true,
            };
            if is_due {
                return self.lock().flush(id);
            }
        }
    }

    /// The kernel is gone: whoever waits for one of its runs is told so.
    pub fn close(&self) {
        let mut state = self.lock();
        *state = State { closed: true, ..State::default() };
        self.changed.notify_waiters();
    }
}

impl State {
    fn active_run(&mut self) -> Option<&mut Run> {
        self.runs.get_mut(self.active.as_ref()?)
    }

    /// Records that wait for their collector.
    fn queued(&self, id: &RunId) -> usize {
        self.runs.get(id).map_or(0, |run| run.records.len())
    }

    fn forget_oldest(&mut self) {
        let bytes = |id: &RunId| self.runs.get(id).map_or(0, |run| run.bytes);
        let mut total: usize = self.ended.iter().map(bytes).sum();
        while self.ended.len() > MAX_ENDED || (total > MAX_ENDED_BYTES && self.ended.len() > 1) {
            let forgotten = self.ended.pop_front().and_then(|id| self.runs.remove(&id));
            total -= forgotten.map_or(0, |run| run.bytes);
        }
    }

    fn add(&mut self, id: &RunId, requests: Vec<Request>) -> Submitted {
        if self.closed {
            return Submitted::Refused;
        }
        if self.active.as_ref() == Some(id) {
            return Submitted::SendNow(requests);
        }
        match self.runs.get_mut(id) {
            Some(run) if self.waiting.contains(id) => {
                run.requests.extend(requests);
                Submitted::Queued
            }
            Some(_) => Submitted::Queued,
            None => Submitted::Unknown,
        }
    }

    /// Moves records to the console up to a boundary; the reply if one was reached or the console is full.
    fn drain(&mut self, id: &RunId) -> Option<ExecuteReply> {
        let run = self.runs.get_mut(id)?;
        while let Some(record) = run.records.pop_front() {
            run.bytes = run.bytes.saturating_sub(size_of(&record));
            let reply = match record {
                Record::CleanFinished { exit_code } => reply(id, RunStatus::CleanFinished, exit_code),
                Record::BuildFinished { exit_code } => {
                    run.console.flush_decoders();
                    reply(id, RunStatus::BuildFinished, exit_code)
                }
                Record::WaitingInput { is_password } => {
                    let options = is_password.map(|value| ("is_password".to_owned(), value.into()));
                    ExecuteReply { options: Some(options.into_iter().collect()), ..reply(id, RunStatus::WaitingInput, None) }
                }
                Record::Finished { exit_code } => {
                    run.console.flush_decoders();
                    reply(id, RunStatus::Finished, exit_code)
                }
                record => {
                    run.console.push(record);
                    if run.console.len() < MAX_REPLY {
                        continue;
                    }
                    reply(id, RunStatus::Continued, None)
                }
            };
            let console = run.console.take();
            let files = match reply.status.is_final() {
                true => self.forget(id).map(|run| run.files).unwrap_or_default(),
                false => Vec::new(),
            };
            return Some(ExecuteReply { console, files, ..reply });
        }
        None
    }

    /// What was gathered so far.
    fn flush(&mut self, id: &RunId) -> Option<ExecuteReply> {
        if self.closed {
            return None;
        }
        let console = self.runs.get_mut(id).map(|run| run.console.take()).unwrap_or_default();
        Some(ExecuteReply { console, ..reply(id, RunStatus::Continued, None) })
    }

    fn forget(&mut self, id: &RunId) -> Option<Run> {
        self.ended.retain(|ended| ended != id);
        self.runs.remove(id)
    }
}

fn reply(id: &RunId, status: RunStatus, exit_code: Option<i32>) -> ExecuteReply {
    ExecuteReply { run_id: id.clone(), status, exit_code, options: None, console: Vec::new(), files: Vec::new() }
}

/// Memory that a record takes, roughly.
fn size_of(record: &Record) -> usize {
    match record {
        Record::Stdout(bytes) | Record::Stderr(bytes) => bytes.len(),
        Record::Media { mime, data } => mime.len() + data.len(),
        Record::Html(text) | Record::Log(text) => text.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
