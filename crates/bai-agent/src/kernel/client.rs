//! The connection to a kernel's runner: requests out, records in, made anew when it breaks.
//!
//! Invariants: requests leave in the order in which they were given; one that was being sent when the connection broke
//! is sent on the next one; whoever reads too slowly stops the reading, so that the runner's own limits take hold;
//! what programs print is in the log, whether or not anybody reads it here.
//!
//! Not here: what records mean (`run`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_proto::runner::{Frame, MAX_RECORD, Record, Request, ServiceRequest, ServiceResult, ServiceStatus};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::logs::Log;
use super::wire::{self, Arriving, Outgoing, WireError};
use crate::runtime::{KernelSpec, Runtime};
use crate::tasks::Tasks;

/// Requests that may wait for the connection.
const REQUEST_BACKLOG: usize = 128;
/// Records that were read but not yet given to a run.
const RECORD_BACKLOG: usize = 64;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a request may wait until there is room for it.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
const COMPLETION_DEADLINE: Duration = Duration::from_secs(10);
/// How often whoever waits for a run has the runner asked whether it is there.
const QUESTION_PERIOD: Duration = Duration::from_secs(1);
/// A runner answers at once, whatever its session computes. One that has not answered for so long does not run.
const SILENCE: Duration = Duration::from_secs(20);
/// Answers about services that may wait for whoever asked.
const SERVICE_BACKLOG: usize = 128;

/// Talks to the runner of one life of a kernel.
#[derive(Debug)]
pub(crate) struct Client {
    requests: mpsc::Sender<Request>,
    completions: tokio::sync::Mutex<mpsc::Receiver<String>>,
    services: broadcast::Sender<ServiceResult>,
    pulse: Arc<Pulse>,
}

/// The runner takes no requests.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the kernel's runner does not take requests")]
pub(crate) struct Unresponsive;

/// The runner answers nothing.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the kernel's runner has not answered for {} s: its container is paused, or its host has no time for it; what runs in it goes on when it does",
    SILENCE.as_secs()
)]
pub(crate) struct Silent;

/// Whether the runner is there: it is asked, and whatever comes from it is an answer.
#[derive(Debug, Default)]
struct Pulse {
    state: Mutex<PulseState>,
    /// A question shall be sent.
    question: Notify,
}

#[derive(Debug, Default)]
struct PulseState {
    /// Since when a question has had no answer.
    asked: Option<Instant>,
    /// What was read waits for whoever shall take it, and the answer behind that.
    is_held_up: bool,
}

impl Pulse {
    fn lock(&self) -> MutexGuard<'_, PulseState> {
        // Assignments only.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was read, which is `held_up` until the next is read.
    fn heard(&self, is_held_up: bool) {
        *self.lock() = PulseState {
            asked: None,
            is_held_up,
        };
    }

    /// Asks, unless a question has no answer yet.
    fn ask(&self) -> Result<(), Silent> {
        let mut state = self.lock();
        match state.asked {
            Some(asked) if asked.elapsed() >= SILENCE => Err(Silent),
            None if !state.is_held_up => {
                state.asked = Some(Instant::now());
                self.question.notify_one();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Client {
    /// Connects in the background until `ended`. The receiver gets the runner's records, answers to other questions
    /// excepted.
    pub fn start(
        tasks: &Tasks,
        runtime: Arc<dyn Runtime>,
        spec: KernelSpec,
        ended: CancellationToken,
    ) -> (Self, mpsc::Receiver<Record>) {
        let (requests, outgoing) = mpsc::channel(REQUEST_BACKLOG);
        let (incoming, records) = mpsc::channel(RECORD_BACKLOG);
        let (completion, completions) = mpsc::channel(REQUEST_BACKLOG);
        let services = broadcast::Sender::new(SERVICE_BACKLOG);
        let pulse = Arc::new(Pulse::default());
        let log = Log::open(&spec.scratch);
        let mut connection = Connection {
            runtime,
            spec,
            outgoing,
            unsent: None,
            incoming,
            completion,
            services: services.clone(),
            pulse: Arc::clone(&pulse),
            log,
        };
        tasks.spawn_until_stopped("runner connection", async move {
            _ = ended.run_until_cancelled(connection.keep_up()).await;
        });
        (
            Self {
                requests,
                completions: tokio::sync::Mutex::new(completions),
                services,
                pulse,
            },
            records,
        )
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When the runner has not taken requests for a while, or the kernel is gone.
    pub async fn send(&self, request: Request) -> Result<(), Unresponsive> {
        self.requests
            .send_timeout(request, SEND_DEADLINE)
            .await
            .map_err(|_| Unresponsive)
    }

    /// Resolves when the runner has not answered for [`SILENCE`]; it is asked from now on and every second, and remembers
    /// who asked before. A program that runs long and says nothing is none of that.
    pub async fn silent(&self) -> Silent {
        let mut ticks = tokio::time::interval(QUESTION_PERIOD);
        loop {
            ticks.tick().await;
            if let Err(silent) = self.pulse.ask() {
                return silent;
            }
        }
    }

    /// Asks for completions; the JSON text of the answer, `None` if there is none in time.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn complete(&self, payload: String) -> Result<Option<String>, Unresponsive> {
        let answer = async {
            // One question at a time: answers do not say what they answer.
            let mut completions = self.completions.lock().await;
            while completions.try_recv().is_ok() {}
            self.send(Request::Complete(payload)).await?;
            Ok(completions.recv().await)
        };
        tokio::time::timeout(COMPLETION_DEADLINE, answer)
            .await
            .unwrap_or(Ok(None))
    }

    /// Asks for a service, and waits for the answer about it; `None` if the kernel goes away meanwhile.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn start_service(
        &self,
        request: &ServiceRequest,
    ) -> Result<Option<ServiceResult>, Unresponsive> {
        let mut results = self.services.subscribe();
        let json = serde_json::json!(request).to_string();
        self.send(Request::StartService(json)).await?;
        loop {
            match results.recv().await {
                // Runners of 19.06 do not say which service they mean.
                Ok(result) if result.name.as_ref().is_none_or(|name| *name == request.name) => {
                    return Ok(Some(result));
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(None),
            }
        }
    }
}

struct Connection {
    runtime: Arc<dyn Runtime>,
    spec: KernelSpec,
    outgoing: mpsc::Receiver<Request>,
    /// Taken from `outgoing` but not sent completely.
    unsent: Option<Frame>,
    incoming: mpsc::Sender<Record>,
    completion: mpsc::Sender<String>,
    services: broadcast::Sender<ServiceResult>,
    pulse: Arc<Pulse>,
    log: Log,
}

impl Connection {
    async fn keep_up(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let connecting = wire::connect(self.runtime.as_ref(), &self.spec);
            match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
                Ok(Ok((writer, reader))) => {
                    pause = FIRST_PAUSE;
                    // A question may have gone with the connection before.
                    self.pulse.heard(false);
                    let answers = (&self.completion, &self.services);
                    let reading = read(reader, &self.incoming, answers, &self.pulse, &mut self.log);
                    let writing = write(writer, &mut self.outgoing, &self.pulse, &mut self.unsent);
                    let outcome = tokio::select! {
                        outcome = reading => outcome,
                        outcome = writing => outcome,
                    };
                    let error = outcome.err().map(tracing::field::display);
                    tracing::debug!(kernel.id = %self.spec.kernel, error, "the connection to a runner ended");
                }
                Ok(Err(error)) => {
                    tracing::debug!(kernel.id = %self.spec.kernel, %error, "cannot connect to a runner yet");
                }
                Err(_) => tracing::warn!(kernel.id = %self.spec.kernel, "a runner does not answer"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn read(
    mut stream: Arriving,
    incoming: &mpsc::Sender<Record>,
    (completion, services): (&mpsc::Sender<String>, &broadcast::Sender<ServiceResult>),
    pulse: &Pulse,
    log: &mut Log,
) -> Result<(), WireError> {
    while let Some(frame) = stream.next().await? {
        pulse.heard(true);
        match truncated(Record::from_frame(frame)) {
            // An answer that nobody waits for is dropped.
            Record::Completion(json) => _ = completion.try_send(json),
            Record::ServiceResult(json) => pass_on(&json, services),
            Record::ServiceOutput(bytes) => log.append(&bytes),
            Record::Status(_) | Record::Unknown(_) => {}
            record => {
                if let Record::Stdout(bytes) | Record::Stderr(bytes) = &record {
                    log.append(bytes);
                }
                if incoming.send(record).await.is_err() {
                    return Ok(());
                }
            }
        }
        pulse.heard(false);
    }
    Ok(())
}

/// Gives an answer about a service to whoever asked.
fn pass_on(json: &str, services: &broadcast::Sender<ServiceResult>) {
    match serde_json::from_str::<ServiceResult>(json) {
        Ok(ended) if ended.status == ServiceStatus::Ended => {
            tracing::info!(
                service = ended.name,
                how = ended.error,
                "a service of a session ended"
            );
        }
        // Nobody may wait for it any more.
        Ok(result) => _ = services.send(result),
        Err(error) => tracing::warn!(%error, "a runner's answer about a service cannot be read"),
    }
}

async fn write(
    mut stream: Outgoing,
    outgoing: &mut mpsc::Receiver<Request>,
    pulse: &Pulse,
    unsent: &mut Option<Frame>,
) -> Result<(), WireError> {
    loop {
        if unsent.is_none() {
            let request = tokio::select! {
                request = outgoing.recv() => request,
                () = pulse.question.notified() => Some(Request::Status),
                lost = stream.lost() => return lost,
            };
            match request {
                Some(request) => *unsent = Some(request.to_frame()),
                // The kernel is being given up; what is still to be read is read until then.
                None => std::future::pending().await,
            }
        }
        if let Some(frame) = unsent.as_ref() {
            stream.send(frame).await?;
            *unsent = None;
        }
    }
}

/// Cuts what no client would want to see whole (`agent-protocol.md` 6.2).
fn truncated(mut record: Record) -> Record {
    if let Record::Stdout(bytes) | Record::Stderr(bytes) = &mut record {
        bytes.truncate(MAX_RECORD);
    }
    record
}
