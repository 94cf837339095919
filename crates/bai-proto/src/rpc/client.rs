//! An agent on another host (`agent-protocol.md` 1.8, 1.9).
//!
//! One connection for all calls, made again whenever it breaks. A call that was sent when it broke fails at once: whether
//! the agent did the work is unknown, so it is never sent again. While there is no connection calls wait a little for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::KernelId;
use bai_model::random::Random;
use bai_model::time::Clock;
use bytes::Bytes;
use rmpv::Value;
use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::call::Call;
use super::error::{ErrorReply, decode_error};
use super::frames::{Reply, Request, Sender};
use super::value;
use crate::agent::{
    AgentError, AgentRpc, ExecuteReply, ExecuteRequest, FileListing, KernelConfig, KernelCreated,
    ServiceStart,
};
use crate::event::AgentImage;
use crate::msgpack::{At, Unexpected};
use crate::zmtp::{Backoff, Command, Connection, Endpoint, Incoming, Limits, SocketType, Tls, dial};

/// What managers of 19.06 wait for most calls.
const USUAL: Duration = Duration::from_secs(30);
const COMPLETION: Duration = Duration::from_secs(10);
const FILE: Duration = Duration::from_secs(60);
/// Longer than the 30 seconds that an agent itself waits for a service.
const SERVICE: Duration = Duration::from_secs(40);
/// An image may have to be pulled.
const CREATION: Duration = Duration::from_secs(30 * 60);
/// How long a call waits for a connection.
const CONNECTION: Duration = Duration::from_secs(10);
/// How many calls may wait to be written.
const QUEUE: usize = 1000;
/// From so many unanswered calls on, those that nobody waits for are forgotten.
const FORGET_FROM: usize = 1000;
/// The version of `execute` whose console is in order (2.5).
const API_VERSION: i64 = 3;
/// A reply is two frames; logs and archives are the large ones.
const LIMITS: Limits = Limits {
    frames: 8,
    bytes: 64 << 20,
};

/// What a connection to an agent needs besides its address.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// For agents of ours that ask for it; `None` for those of 19.06.
    pub tls: Option<Tls>,
}

/// A client of one agent. Dropping it ends the connection and fails what is being waited for.
#[derive(Debug)]
pub struct ZmqAgent {
    endpoint: Endpoint,
    calls: mpsc::Sender<Pending>,
    state: watch::Receiver<State>,
    /// Why it was closed, once it was.
    closed: OnceLock<String>,
    stop: CancellationToken,
    _stopped_with_it: DropGuard,
}

#[derive(Clone, Debug)]
enum State {
    /// With the reason of the last failure.
    Connecting(Option<String>),
    Connected,
}

/// A call on its way.
#[derive(Debug)]
struct Pending {
    call: Call,
    answer: oneshot::Sender<Result<Answer, AgentError>>,
}

/// Whether it is an error, and its bytes, which are read by who asked.
type Answer = (bool, Bytes);

impl ZmqAgent {
    /// Starts connecting in the background; nothing is lost by not having an agent there yet.
    pub fn connect(endpoint: Endpoint, options: AgentOptions) -> Self {
        let (calls, receiver) = mpsc::channel(QUEUE);
        let (sender, state) = watch::channel(State::Connecting(None));
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            endpoint: endpoint.clone(),
            options,
            calls: receiver,
            state: sender,
            next_id: 1,
        };
        let work = {
            let stop = stop.clone();
            async move { stop.run_until_cancelled(supervisor.run()).await }
        };
        // Ends with the drop guard below; there is nothing to clean up after it.
        drop(tokio::spawn(work));
        Self {
            endpoint,
            calls,
            state,
            closed: OnceLock::new(),
            stop: stop.clone(),
            _stopped_with_it: stop.drop_guard(),
        }
    }

    /// Ends the connection for good: every call that waits, and every later one, fails with this reason.
    pub fn close(&self, reason: &str) {
        _ = self.closed.set(reason.to_owned());
        self.stop.cancel();
    }

    fn was_closed(&self) -> AgentError {
        lost(self.closed.get().map_or("it was closed", String::as_str))
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Why there is no connection, once it broke or the first attempt has failed. Whoever has many of these says so: one
    /// line for each would be a thousand when a network is down.
    pub fn failure(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Connecting(reason) => reason.clone(),
            State::Connected => None,
        }
    }

    pub fn is_connected(&self) -> bool {
        matches!(*self.state.borrow(), State::Connected)
    }

    /// Whether somebody answers there, and what is sent comes back.
    ///
    /// # Errors
    /// As any call.
    pub async fn ping(&self) -> Result<(), AgentError> {
        let call = Call::Ping("bai".to_owned());
        let echo = self
            .ask(call, COMPLETION, |at| at.text().map(str::to_owned))
            .await?;
        if echo == "bai" {
            Ok(())
        } else {
            Err(unusable("ping", &"it is not what was sent"))
        }
    }

    async fn wait_for_connection(&self) -> Result<(), AgentError> {
        let mut state = self.state.clone();
        let connected = state.wait_for(|state| matches!(state, State::Connected));
        match tokio::time::timeout(CONNECTION, connected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.was_closed()),
            Err(_) => {
                let reason = match &*self.state.borrow() {
                    State::Connecting(Some(reason)) => reason.clone(),
                    _ => format!("{} does not answer", self.endpoint),
                };
                Err(connection_error(format!(
                    "there is no connection to the agent: {reason}"
                )))
            }
        }
    }

    async fn answer(&self, call: Call, deadline: Duration) -> Result<Result<Value, ErrorReply>, AgentError> {
        let function = call.function();
        let work = async {
            self.wait_for_connection().await?;
            let (sender, answer) = oneshot::channel();
            let pending = Pending { call, answer: sender };
            self.calls.send(pending).await.map_err(|_| self.was_closed())?;
            answer.await.map_err(|_| self.was_closed())?
        };
        let (is_error, body) = tokio::time::timeout(deadline, work)
            .await
            .map_err(|_| AgentError::Timeout)??;
        Reply::decode_answer(is_error, &body).map_err(|error| unusable(function, &error))
    }

    /// Calls and reads the result, where there must be one.
    async fn ask<T>(
        &self,
        call: Call,
        deadline: Duration,
        read: impl FnOnce(At<'_>) -> Result<T, Unexpected>,
    ) -> Result<T, AgentError> {
        let function = call.function();
        let value = self
            .answer(call, deadline)
            .await?
            .map_err(|reply| decode_error(&reply))?;
        read(At::new(&value, "it")).map_err(|wrong| unusable(function, &wrong))
    }

    /// The same where there may be no result.
    async fn ask_for_some<T>(
        &self,
        call: Call,
        deadline: Duration,
        read: impl FnOnce(At<'_>) -> Result<T, Unexpected>,
    ) -> Result<Option<T>, AgentError> {
        let function = call.function();
        match self.answer(call, deadline).await? {
            Ok(Value::Nil) => Ok(None),
            Ok(value) => read(At::new(&value, "it"))
                .map(Some)
                .map_err(|wrong| unusable(function, &wrong)),
            Err(reply) if reply.is_no_result() => Ok(None),
            Err(reply) => Err(decode_error(&reply)),
        }
    }
}

fn connection_error(text: String) -> AgentError {
    AgentError::exception("ConnectionError", text)
}

fn lost(reason: &str) -> AgentError {
    connection_error(format!(
        "the connection to the agent broke, and whether it did the work is unknown: {reason}"
    ))
}

fn unusable(function: &str, reason: &dyn std::fmt::Display) -> AgentError {
    AgentError::exception(
        "ValueError",
        format!("the agent's answer to {function} cannot be used: {reason}"),
    )
}

#[async_trait]
impl AgentRpc for ZmqAgent {
    async fn create_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        let read = |at: At<'_>| Ok((value::read_created_id(at)?, value::read_created(at)?));
        let (id, created) = self
            .ask(Call::CreateKernel(kernel, config), CREATION, read)
            .await?;
        if id != kernel {
            return Err(unusable("create_kernel", &"it is about another kernel"));
        }
        Ok(created)
    }

    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Json>, AgentError> {
        self.ask_for_some(Call::DestroyKernel(kernel), USUAL, |at| at.json())
            .await
    }

    async fn restart_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.ask(Call::RestartKernel(kernel, config), USUAL, value::read_created)
            .await
    }

    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        let asked = request.run_id.clone();
        let call = Call::Execute {
            api_version: API_VERSION,
            kernel,
            request,
        };
        self.ask_for_some(call, USUAL, |at| value::read_execution(at, asked))
            .await
    }

    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.ask(Call::InterruptKernel(kernel), USUAL, |_| Ok(())).await
    }

    /// Empty from an agent of 19.06, which is not asked: there each such call would leave a waiter behind.
    async fn get_completions(
        &self,
        kernel: KernelId,
        code: String,
        options: Json,
    ) -> Result<Vec<String>, AgentError> {
        match self.list_kernels().await {
            Err(error) if error.is_not_provided() => return Ok(Vec::new()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let call = Call::GetCompletions {
            kernel,
            code,
            options,
        };
        let read = |at: At<'_>| {
            let items = at.get("completions")?.items()?.iter();
            items
                .map(|item| At::new(item, "a completion").text().map(str::to_owned))
                .collect()
        };
        let completions = self.ask_for_some(call, COMPLETION, read).await?;
        Ok(completions.unwrap_or_default())
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        let read = |at: At<'_>| at.get("logs")?.text().map(str::to_owned);
        self.ask(Call::GetLogs(kernel), USUAL, read).await
    }

    async fn upload_file(&self, kernel: KernelId, path: String, data: Bytes) -> Result<(), AgentError> {
        self.ask(Call::UploadFile { kernel, path, data }, FILE, |_| Ok(()))
            .await
    }

    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError> {
        let read = |at: At<'_>| at.bytes().map(Bytes::copy_from_slice);
        self.ask(Call::DownloadFile(kernel, path), FILE, read).await
    }

    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError> {
        self.ask(Call::ListFiles(kernel, path), USUAL, value::read_listing)
            .await
    }

    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.ask(Call::RefreshIdle(kernel), USUAL, |_| Ok(())).await
    }

    async fn start_service(
        &self,
        kernel: KernelId,
        service: String,
        options: Json,
    ) -> Result<ServiceStart, AgentError> {
        let call = Call::StartService {
            kernel,
            service,
            options,
        };
        self.ask(call, SERVICE, value::read_service_start).await
    }

    /// Not provided by an agent of 19.06.
    async fn add_image(&self, name: String) -> Result<AgentImage, AgentError> {
        self.ask(Call::AddImage(name), CREATION, value::read_agent_image)
            .await
    }

    /// Not provided by an agent of 19.06 ([`AgentError::is_not_provided`]).
    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        let read = |at: At<'_>| {
            let id = |item: &Value| {
                let at = At::new(item, "an item");
                at.text()?.parse().map_err(|_| at.wrong("not a kernel id"))
            };
            at.items()?.iter().map(id).collect()
        };
        self.ask(Call::ListKernels, USUAL, read).await
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        self.ask(Call::ResetAgent, USUAL, |_| Ok(())).await
    }
}

/// Calls that were sent, by number.
type Unanswered = Mutex<HashMap<u32, oneshot::Sender<Result<Answer, AgentError>>>>;

/// Keeps the connection.
struct Supervisor {
    endpoint: Endpoint,
    options: AgentOptions,
    calls: mpsc::Receiver<Pending>,
    state: watch::Sender<State>,
    next_id: u32,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let tls = self.options.tls.as_ref();
            let reason = match dial(&self.endpoint, SocketType::Dealer, LIMITS, tls).await {
                Ok(connection) => {
                    backoff = Backoff::new();
                    tracing::info!(peer.endpoint = %self.endpoint, "connected to an agent");
                    self.state.send_replace(State::Connected);
                    self.serve(connection).await
                }
                Err(error) => error.to_string(),
            };
            tracing::debug!(peer.endpoint = %self.endpoint, reason, "there is no connection to an agent");
            self.state.send_replace(State::Connecting(Some(reason.clone())));
            // These were not sent, and may have long deadlines; they shall not start minutes later.
            while let Ok(pending) = self.calls.try_recv() {
                let text = format!("the connection to the agent broke before the call was sent: {reason}");
                _ = pending.answer.send(Err(connection_error(text)));
            }
            tokio::time::sleep(backoff.pause(self.options.random.as_ref())).await;
        }
    }

    /// Until the connection ends, for the reason returned. Fails what was sent and not answered.
    async fn serve(&mut self, connection: Connection) -> String {
        let unanswered = Unanswered::default();
        let reason = self.exchange(connection, &unanswered).await;
        let left = std::mem::take(&mut *lock(&unanswered));
        for (_, answer) in left {
            _ = answer.send(Err(lost(&reason)));
        }
        reason
    }

    async fn exchange(&mut self, connection: Connection, unanswered: &Unanswered) -> String {
        let Connection {
            mut reader,
            mut writer,
            peer,
            ..
        } = connection;
        let (pings, mut pinged) = mpsc::channel::<Bytes>(4);
        let reading = async {
            loop {
                match reader.next().await? {
                    None => return Ok("the agent closed it".to_owned()),
                    Some(Incoming::Message(message)) => receive(&message, unanswered, peer),
                    Some(Incoming::Command(Command::Ping { context })) => _ = pings.try_send(context),
                    Some(Incoming::Command(_)) => {}
                }
            }
        };
        let mut rnd = [0; 2];
        self.options.random.fill(&mut rnd);
        let rnd = u16::from_le_bytes(rnd);
        let clock = Arc::clone(&self.options.clock);
        let (calls, next_id) = (&mut self.calls, &mut self.next_id);
        let writing = async {
            let mut forget_from = FORGET_FROM;
            loop {
                tokio::select! {
                    Some(context) = pinged.recv() => writer.pong(&context).await?,
                    pending = calls.recv() => {
                        let Some(Pending { call, answer }) = pending else {
                            return Ok("it was closed".to_owned());
                        };
                        if answer.is_closed() {
                            continue;
                        }
                        let id = {
                            let mut unanswered = lock(unanswered);
                            if unanswered.len() >= forget_from {
                                unanswered.retain(|_, answer| !answer.is_closed());
                                forget_from = FORGET_FROM.max(2 * unanswered.len());
                            }
                            while unanswered.contains_key(next_id) {
                                *next_id = next_id.wrapping_add(1);
                            }
                            unanswered.insert(*next_id, answer);
                            *next_id
                        };
                        *next_id = id.wrapping_add(1);
                        let message = request(&call, id).encode(sender(clock.as_ref(), rnd));
                        writer.send(&message).await?;
                    }
                }
            }
        };
        let ended: Result<String, crate::zmtp::ZmtpError> = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
        };
        ended.unwrap_or_else(|error| error.to_string())
    }
}

fn lock(
    unanswered: &Unanswered,
) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Result<Answer, AgentError>>>> {
    unanswered.lock().unwrap_or_else(PoisonError::into_inner)
}

fn request(call: &Call, id: u32) -> Request {
    Request {
        envelope: Vec::new(),
        id,
        function: call.function().to_owned(),
        args: call.args(),
        kwargs: Vec::new(),
    }
}

/// This process, now, in a header.
pub(super) fn sender(clock: &dyn Clock, rnd: u16) -> Sender {
    Sender {
        pid: std::process::id() as u16,
        rnd,
        timestamp: clock.now().timestamp_micros() as f64 / 1e6,
    }
}

/// Hands a reply to who waits for it.
fn receive(message: &[Bytes], unanswered: &Unanswered, peer: std::net::SocketAddr) {
    match Reply::decode_header(message) {
        Ok((id, is_error, body)) => {
            let waiting = lock(unanswered).remove(&id);
            let is_taken = waiting.is_some_and(|answer| answer.send(Ok((is_error, body))).is_ok());
            if !is_taken {
                tracing::debug!(peer.addr = %peer, call = id, "an agent's answer came when nobody waited for it any more");
            }
        }
        Err(error) => {
            tracing::warn!(peer.addr = %peer, %error, "an agent sent a malformed reply, which is ignored");
        }
    }
}
