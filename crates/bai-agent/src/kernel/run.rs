//! The runs of a kernel (`agent-protocol.md` 6.2): one queue of records for each, activated in the order in which they
//! were asked for.
//!
//! A run is *waiting* until those before it have ended, then *active*, then *ended*. Whoever executes it collects its
//! records, before or after its end; the next run does not wait for that.
//!
//! Invariants: at most one run is active; a queue holds at most [`MAX_RECORDS`] records and about [`MAX_BYTES`], then
//! whoever fills it waits; nothing collected is lost when a collector goes away. After an interrupt the oldest output
//! makes room instead, as on a terminal: a run that nobody reads any more must be able to end.
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

/// The name of a run that may go on in a kernel of another agent, who did not leave a note of it. Whoever continues a run
/// that is unknown here means this one.
pub(crate) const UNNAMED: &str = "unnamed run of another agent";

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
    is_interrupted: bool,
}

/// Why a run was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error("too many runs wait for their turn in this kernel; collect or interrupt some")]
    TooMany,
    #[error("a run of this name goes on in this kernel; continue it, or choose another run id")]
    Taken,
    #[error("the kernel is gone")]
    Gone,
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is completed before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a new run with `requests` at the end of the queue.
    ///
    /// # Errors
    /// [`NotStarted`] when there is no room, or the name is that of a run that has not ended.
    pub fn start(&self, id: &RunId, requests: Vec<Request>) -> Result<(), NotStarted> {
        let mut state = self.lock();
        if state.closed {
            return Err(NotStarted::Gone);
        }
        if state.waiting.len() >= MAX_WAITING {
            return Err(NotStarted::TooMany);
        }
        if state.active.as_ref() == Some(id) || state.waiting.contains(id) {
            // Its output could not be told from that of the run which goes on.
            return Err(NotStarted::Taken);
        }
        // Clients use names again; what is left of an earlier run is of no interest.
        state.forget(id);
        let run = Run {
            requests,
            ..Run::default()
        };
        state.runs.insert(id.clone(), run);
        state.waiting.push_back(id.clone());
        self.changed.notify_waiters();
        Ok(())
    }

    /// Whether the run takes typed text now, that is, it is active. For one that waits for its turn, the text is kept
    /// until then; for one that is over or unknown it is dropped.
    pub fn input(&self, id: &RunId, text: &str) -> bool {
        let mut state = self.lock();
        state.claim(id);
        if state.active.as_ref() == Some(id) {
            return true;
        }
        if state.waiting.contains(id)
            && let Some(run) = state.runs.get_mut(id)
        {
            run.requests.push(Request::Input(text.to_owned()));
        }
        false
    }

    /// Somebody wants to go on with a run.
    pub fn claim(&self, id: &RunId) {
        self.lock().claim(id);
    }

    /// The active run has been interrupted: from now on it does not wait for whoever collects it.
    pub fn interrupted(&self) {
        if let Some(run) = self.lock().active_run() {
            run.is_interrupted = true;
        }
        self.changed.notify_waiters();
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
                    let requests = state
                        .runs
                        .get_mut(&id)
                        .map(|run| std::mem::take(&mut run.requests));
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
                while run.is_interrupted && !run.has_room_for(size) {
                    run.pop();
                }
                if run.has_room_for(size) {
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
    pub fn end(&self, last: Record, files: Vec<GeneratedFile>) {
        let mut state = self.lock();
        let Some(id) = state.active.take() else { return };
        if let Some(run) = state.runs.get_mut(&id) {
            run.files = files;
            // Small, and the last one: it need not wait for room.
            run.records.push_back(last);
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
                // Asked first: with enough output there is always a change.
                Some(deadline) if deadline <= Instant::now() => true,
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
        *state = State {
            closed: true,
            ..State::default()
        };
        self.changed.notify_waiters();
    }
}

impl State {
    fn active_run(&mut self) -> Option<&mut Run> {
        self.runs.get_mut(self.active.as_ref()?)
    }

    /// Gives an active run that has no name this one, if no other has it.
    fn claim(&mut self, id: &RunId) {
        if self
            .active
            .as_ref()
            .is_none_or(|active| active.as_str() != UNNAMED)
            || self.runs.contains_key(id)
        {
            return;
        }
        if let Some(run) = self.active.take().and_then(|unnamed| self.runs.remove(&unnamed)) {
            self.runs.insert(id.clone(), run);
            self.active = Some(id.clone());
        }
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

    /// Moves records to the console up to a boundary; the reply if one was reached or the console is full.
    fn drain(&mut self, id: &RunId) -> Option<ExecuteReply> {
        let run = self.runs.get_mut(id)?;
        while let Some(record) = run.pop() {
            let reply = match record {
                Record::CleanFinished { exit_code } => reply(id, RunStatus::CleanFinished, exit_code),
                Record::BuildFinished { exit_code } => {
                    run.console.flush_decoders();
                    reply(id, RunStatus::BuildFinished, exit_code)
                }
                Record::WaitingInput { is_password } => {
                    let options = is_password.map(|value| ("is_password".to_owned(), value.into()));
                    ExecuteReply {
                        options: Some(options.into_iter().collect()),
                        ..reply(id, RunStatus::WaitingInput, None)
                    }
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
            return Some(ExecuteReply {
                console,
                files,
                ..reply
            });
        }
        None
    }

    /// What was gathered so far.
    fn flush(&mut self, id: &RunId) -> Option<ExecuteReply> {
        if self.closed {
            return None;
        }
        let console = self
            .runs
            .get_mut(id)
            .map(|run| run.console.take())
            .unwrap_or_default();
        Some(ExecuteReply {
            console,
            ..reply(id, RunStatus::Continued, None)
        })
    }

    fn forget(&mut self, id: &RunId) -> Option<Run> {
        self.ended.retain(|ended| ended != id);
        self.runs.remove(id)
    }
}

impl Run {
    fn has_room_for(&self, size: usize) -> bool {
        self.records.is_empty() || (self.records.len() < MAX_RECORDS && self.bytes + size <= MAX_BYTES)
    }

    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes = self.bytes.saturating_sub(size_of(&record));
        Some(record)
    }
}

fn reply(id: &RunId, status: RunStatus, exit_code: Option<i32>) -> ExecuteReply {
    ExecuteReply {
        run_id: id.clone(),
        status,
        exit_code,
        options: None,
        console: Vec::new(),
        files: Vec::new(),
    }
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
