//! The agent's side of the runner protocol (`agent-protocol.md` 6.2): one connection, runs one after another, each
//! collected by calls that come and go.
//!
//! Invariants: one run is active at a time, others wait in order of arrival; records of the active run wait for a call,
//! at most [`QUEUE`] of them, then the connection is not read (back-pressure, not loss); a connection that breaks is made
//! again as long as the kernel lives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::RunId;
use bai_proto::agent::{AgentError, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, RunStatus};
use bai_proto::runner::{Frame, Record, Request};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::console::Console;
use super::logs::Log;
use crate::runtime::{KernelSpec, RunnerStream, Runtime};

/// Records of a run that may wait for a call.
const QUEUE: usize = 4096;
/// How long a request waits for a connection to the runner.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long completions are waited for.
const COMPLETION_DEADLINE: Duration = Duration::from_secs(10);
/// Between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// The connection to one kernel's runner.
#[derive(Clone, Debug)]
pub struct RunnerClient(Arc<Shared>);

struct Shared {
    runs: Mutex<Runs>,
    /// Something about the runs changed.
    changed: Notify,
    writer: tokio::sync::Mutex<Option<WriteHalf<Box<dyn RunnerStream>>>>,
    connected: Notify,
    completions: tokio::sync::Mutex<mpsc::Receiver<String>>,
    log: Mutex<Log>,
    /// The kernel is going away.
    gone: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunnerClient")
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Runs {
    active: Option<RunId>,
    waiting: VecDeque<RunId>,
    records: VecDeque<Record>,
    console: Console,
}

impl RunnerClient {
    /// Connects in the background.
    pub fn start(runtime: Arc<dyn Runtime>, spec: KernelSpec, tasks: &TaskTracker) -> Self {
        let (completed, completions) = mpsc::channel(16);
        let client = Self(Arc::new(Shared {
            runs: Mutex::default(),
            changed: Notify::new(),
            writer: tokio::sync::Mutex::new(None),
            connected: Notify::new(),
            completions: tokio::sync::Mutex::new(completions),
            log: Mutex::new(Log::open(&spec.scratch)),
            gone: CancellationToken::new(),
        }));
        let reader = client.clone();
        tasks.spawn(async move {
            let gone = reader.0.gone.clone();
            tokio::select! {
                () = gone.cancelled() => {}
                () = reader.read_for_ever(runtime, spec, completed) => {}
            }
        });
        client
    }

    /// Ends the connection; calls that wait answer that the kernel is gone.
    pub fn close(&self) {
        self.0.gone.cancel();
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_for_ever(
        &self,
        runtime: Arc<dyn Runtime>,
        spec: KernelSpec,
        completed: mpsc::Sender<String>,
    ) {
        loop {
            match runtime.connect(&spec).await {
                Ok(stream) => {
                    let (mut reader, writer) = tokio::io::split(stream);
                    *self.0.writer.lock().await = Some(writer);
                    self.0.connected.notify_waiters();
                    while let Ok(Some(frame)) = Frame::read_async(&mut reader).await {
                        self.receive(Record::from_frame(frame), &completed).await;
                    }
                    *self.0.writer.lock().await = None;
                }
                Err(error) => {
                    tracing::debug!(kernel.id = %spec.kernel, %error, "the runner cannot be reached yet")
                }
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn receive(&self, record: Record, completed: &mpsc::Sender<String>) {
        match &record {
            Record::Completion(names) => {
                // Nobody waiting means that they gave up.
                _ = completed.try_send(names.clone());
                return;
            }
            Record::ServiceResult(_) | Record::Status(_) | Record::Unknown(_) => return,
            Record::Stdout(bytes) | Record::Stderr(bytes) => {
                self.0
                    .log
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .append(bytes);
            }
            _ => {}
        }
        let mut record = Some(record);
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut runs = self.runs();
                // Output without a run has nobody to go to; it is in the log.
                if runs.active.is_none() {
                    return;
                }
                if runs.records.len() < QUEUE {
                    runs.records.extend(record.take());
                    drop(runs);
                    self.0.changed.notify_waiters();
                    return;
                }
            }
            changed.await;
        }
    }

    async fn send(&self, request: &Request) -> Result<(), AgentError> {
        let bytes = request.to_frame().encode();
        let sending = async {
            loop {
                let connected = self.0.connected.notified();
                tokio::pin!(connected);
                connected.as_mut().enable();
                let mut writer = self.0.writer.lock().await;
                if let Some(stream) = writer.as_mut() {
                    if stream.write_all(&bytes).await.is_ok() {
                        return;
                    }
                    *writer = None;
                }
                drop(writer);
                connected.await;
            }
        };
        tokio::time::timeout(CONNECT_DEADLINE, sending)
            .await
            .map_err(|_| AgentError::Timeout)
    }

    /// As `AgentRpc::execute`. `run_id` is the one in effect.
    pub async fn execute(
        &self,
        run_id: RunId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        tokio::select! {
            () = self.0.gone.cancelled() => Ok(None),
            reply = self.execute_alive(run_id, request) => reply.map(Some),
        }
    }

    async fn execute_alive(
        &self,
        run_id: RunId,
        request: ExecuteRequest,
    ) -> Result<ExecuteReply, AgentError> {
        let begins = matches!(request.mode, ExecuteMode::Query | ExecuteMode::Batch);
        let deadline = request.flush_timeout.map(|timeout| Instant::now() + timeout);
        if !begins && !self.is_known(&run_id) {
            return Ok(reply(run_id, RunStatus::Continued, Vec::new()));
        }
        self.activate(&run_id).await;
        let requests = match request.mode {
            ExecuteMode::Query => vec![Request::Code(request.code)],
            ExecuteMode::Input => vec![Request::Input(request.code)],
            ExecuteMode::Continue => Vec::new(),
            ExecuteMode::Batch => vec![
                Request::Clean(request.batch.clean.unwrap_or_default()),
                Request::Build(request.batch.build.unwrap_or_default()),
                Request::Exec(request.batch.exec.unwrap_or_default()),
            ],
        };
        for request in &requests {
            if let Err(error) = self.send(request).await {
                self.end(&run_id);
                return Err(error);
            }
        }
        Ok(self.collect(run_id, deadline).await)
    }

    fn is_known(&self, run_id: &RunId) -> bool {
        let runs = self.runs();
        runs.active.as_ref() == Some(run_id) || runs.waiting.contains(run_id)
    }

    /// Waits until the run is the active one.
    async fn activate(&self, run_id: &RunId) {
        let mut place = Place {
            client: self,
            run_id,
            is_active: false,
        };
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.try_activate(run_id) {
                place.is_active = true;
                return;
            }
            changed.await;
        }
    }

    fn try_activate(&self, run_id: &RunId) -> bool {
        let mut runs = self.runs();
        if runs.active.as_ref() == Some(run_id) {
            return true;
        }
        if runs.active.is_none() && runs.waiting.front().is_none_or(|first| first == run_id) {
            runs.waiting.pop_front();
            runs.active = Some(run_id.clone());
            runs.records.clear();
            runs.console = Console::default();
            return true;
        }
        if !runs.waiting.contains(run_id) {
            runs.waiting.push_back(run_id.clone());
        }
        false
    }

    /// Gathers records until a boundary or the deadline.
    async fn collect(&self, run_id: RunId, deadline: Option<Instant>) -> ExecuteReply {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(reply) = self.take_until_boundary(&run_id) {
                return reply;
            }
            let Some(deadline) = deadline else {
                changed.await;
                continue;
            };
            if timeout_at(deadline, changed).await.is_err() {
                let last = self.take_until_boundary(&run_id);
                return last
                    .unwrap_or_else(|| reply(run_id, RunStatus::Continued, self.runs().console.take()));
            }
        }
    }

    fn take_until_boundary(&self, run_id: &RunId) -> Option<ExecuteReply> {
        let mut runs = self.runs();
        if runs.records.len() == QUEUE {
            // There will be room for the reader once this returns.
            self.0.changed.notify_waiters();
        }
        if runs.active.as_ref() != Some(run_id) {
            // Another call of the same run took its end.
            return Some(reply(run_id.clone(), RunStatus::Continued, Vec::new()));
        }
        while let Some(record) = runs.records.pop_front() {
            let (status, exit_code) = match record {
                Record::CleanFinished { exit_code } => (RunStatus::CleanFinished, exit_code),
                Record::BuildFinished { exit_code } => (RunStatus::BuildFinished, exit_code),
                Record::Finished { exit_code } => (RunStatus::Finished, exit_code),
                Record::WaitingInput { is_password } => {
                    let mut reply = reply(run_id.clone(), RunStatus::WaitingInput, runs.console.take());
                    let options =
                        is_password.map(|is_password| ("is_password".to_owned(), is_password.into()));
                    reply.options = Some(options.into_iter().collect());
                    return Some(reply);
                }
                record => {
                    runs.console.push(record);
                    continue;
                }
            };
            if status != RunStatus::CleanFinished {
                runs.console.flush();
            }
            let mut reply = reply(run_id.clone(), status, runs.console.take());
            reply.exit_code = exit_code;
            if status.is_final() {
                runs.active = None;
            }
            drop(runs);
            self.0.changed.notify_waiters();
            return Some(reply);
        }
        None
    }

    fn end(&self, run_id: &RunId) {
        let mut runs = self.runs();
        if runs.active.as_ref() == Some(run_id) {
            runs.active = None;
        }
        drop(runs);
        self.0.changed.notify_waiters();
    }

    pub async fn interrupt(&self) -> Result<(), AgentError> {
        self.send(&Request::Interrupt).await
    }

    /// The names that continue the code; empty when the runner does not answer.
    pub async fn complete(&self, request: String) -> Result<Vec<String>, AgentError> {
        let mut completions = self.0.completions.lock().await;
        while completions.try_recv().is_ok() {}
        self.send(&Request::Complete(request)).await?;
        let answer = tokio::time::timeout(COMPLETION_DEADLINE, completions.recv()).await;
        let names = answer.ok().flatten().unwrap_or_default();
        Ok(serde_json::from_str(&names).unwrap_or_default())
    }
}

/// A place in the queue of runs, given up when the call that waits there is dropped.
struct Place<'a> {
    client: &'a RunnerClient,
    run_id: &'a RunId,
    is_active: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.is_active {
            self.client
                .runs()
                .waiting
                .retain(|waiting| waiting != self.run_id);
            self.client.0.changed.notify_waiters();
        }
    }
}

fn reply(run_id: RunId, status: RunStatus, console: Vec<ConsoleItem>) -> ExecuteReply {
    ExecuteReply {
        run_id,
        status,
        exit_code: None,
        options: None,
        console,
        files: Vec::new(),
    }
}
