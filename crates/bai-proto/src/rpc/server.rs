//! Lets others call an agent of this process (`agent-protocol.md` 1.6).
//!
//! Calls of one peer run side by side, so many at most; the next one is read when one has ended. A call goes on when its peer
//! leaves. When the server stops, calls that run are not answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bai_model::random::Random;
use bai_model::time::Clock;
use bytes::Bytes;
use rmpv::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::Call;
use super::client::sender;
use super::error::{ErrorReply, encode_error};
use super::frames::{Reply, Request};
use super::value;
use crate::agent::{AgentError, AgentRpc};
use crate::msgpack::{from_json, map};
use crate::zmtp::{
    AllowList, Command, Connection, Incoming, Limits, Listener, ListenerOptions, Message, Reader, SocketType,
    Tls, Writer, ZmtpError,
};

/// Four frames and an envelope; the largest calls upload a file.
const LIMITS: Limits = Limits {
    frames: 16,
    bytes: 64 << 20,
};
/// Replies that may wait to be written to one peer.
const REPLIES: usize = 16;

/// Who may call, and how.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub allow: AllowList,
    pub tls: Option<Tls>,
    /// Connections at the same time; a 19.06 manager has one for each of its processes.
    pub max_peers: usize,
    /// Calls of one connection that run at the same time.
    pub max_calls: usize,
}

impl ServerOptions {
    /// Everybody may call, without encryption, as in 19.06.
    pub fn new(clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            clock,
            random,
            allow: AllowList::default(),
            tls: None,
            max_peers: 256,
            max_calls: 1000,
        }
    }
}

/// A bound server, to be run.
#[derive(Debug)]
pub struct RpcServer {
    listener: Listener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    agent: Arc<dyn AgentRpc>,
    clock: Arc<dyn Clock>,
    max_calls: usize,
    /// Of this server, as headers carry it.
    rnd: u16,
    calls: TaskTracker,
    stop: CancellationToken,
}

impl RpcServer {
    /// Binds the address, whose port may be 0.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        agent: Arc<dyn AgentRpc>,
        options: ServerOptions,
    ) -> io::Result<Self> {
        let mut rnd = [0; 2];
        options.random.fill(&mut rnd);
        let listener = ListenerOptions {
            allow: options.allow,
            max_peers: options.max_peers,
            limits: LIMITS,
            tls: options.tls,
        };
        Ok(Self {
            listener: Listener::bind(address, SocketType::Router, listener).await?,
            shared: Arc::new(Shared {
                agent,
                clock: options.clock,
                max_calls: options.max_calls,
                rnd: u16::from_le_bytes(rnd),
                calls: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Calls that run then are dropped where they wait.
    pub async fn run(self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        let serve = {
            let shared = Arc::clone(&shared);
            move |connection| {
                let shared = Arc::clone(&shared);
                async move { shared.serve(connection).await }
            }
        };
        let follow = async {
            stop.cancelled().await;
            shared.stop.cancel();
        };
        tokio::join!(follow, self.listener.run(&shared.stop, serve));
        shared.calls.close();
        shared.calls.wait().await;
    }
}

impl Shared {
    /// Until the peer leaves.
    async fn serve(self: Arc<Self>, connection: Connection) {
        let Connection {
            mut reader,
            mut writer,
            peer,
            ..
        } = connection;
        tracing::debug!(peer.addr = %peer, "a manager connected");
        let (replies, mut outgoing) = mpsc::channel(REPLIES);
        let (pings, mut pinged) = mpsc::channel(4);
        let ended = tokio::select! {
            ended = self.read(&mut reader, peer, replies, pings) => ended,
            ended = write(&mut writer, &mut outgoing, &mut pinged) => ended,
            () = self.stop.cancelled() => Ok(()),
        };
        match ended {
            Ok(()) => tracing::debug!(peer.addr = %peer, "a manager's connection ended"),
            Err(ZmtpError::Io(error)) => {
                tracing::debug!(peer.addr = %peer, %error, "a manager's connection broke")
            }
            Err(error) => tracing::warn!(peer.addr = %peer, %error, "a manager's connection is closed"),
        }
    }

    async fn read(
        self: &Arc<Self>,
        reader: &mut Reader,
        peer: SocketAddr,
        replies: mpsc::Sender<Message>,
        pings: mpsc::Sender<Bytes>,
    ) -> Result<(), ZmtpError> {
        let places = Arc::new(Semaphore::new(self.max_calls));
        let mut malformed = 0_u64;
        while let Some(incoming) = reader.next().await? {
            let message = match incoming {
                Incoming::Message(message) => message,
                Incoming::Command(Command::Ping { context }) => {
                    _ = pings.try_send(context);
                    continue;
                }
                Incoming::Command(_) => continue,
            };
            let request = match Request::decode(message) {
                Ok(request) => request,
                // One line for each peer, so that nobody fills the log.
                Err(error) => {
                    if malformed == 0 {
                        tracing::warn!(peer.addr = %peer, %error, "malformed calls are ignored");
                    }
                    malformed += 1;
                    continue;
                }
            };
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let (shared, replies) = (Arc::clone(self), replies.clone());
            self.calls.spawn(async move {
                let _place = place;
                let stop = shared.stop.clone();
                if let Some(reply) = stop.run_until_cancelled(shared.reply(request, peer)).await {
                    // The peer may have left.
                    _ = replies.send(reply).await;
                }
            });
        }
        if malformed > 1 {
            tracing::warn!(peer.addr = %peer, malformed, "a peer that sent malformed calls left");
        }
        Ok(())
    }

    async fn reply(self: &Arc<Self>, request: Request, peer: SocketAddr) -> Message {
        let Request {
            envelope,
            id,
            function,
            args,
            kwargs,
        } = request;
        let answer = match Call::decode(&function, &args, &kwargs) {
            Ok(call) => {
                let shared = Arc::clone(self);
                // In a task of its own, so that a panic is an answer too.
                let work = self.calls.spawn(async move { shared.carry_out(call).await });
                work.await.unwrap_or_else(|_| {
                    let error = AgentError::exception("RuntimeError", "the agent failed; its log says why");
                    Err(encode_error(&error))
                })
            }
            Err(refusal) => {
                tracing::debug!(peer.addr = %peer, function, error = refusal.repr, "a call was refused");
                Err(refusal)
            }
        };
        Reply { id, answer }.encode(envelope, sender(self.clock.as_ref(), self.rnd))
    }

    async fn carry_out(&self, call: Call) -> Result<Value, ErrorReply> {
        match self.stop.run_until_cancelled(self.call_agent(call)).await {
            Some(answer) => answer,
            // Not sent any more.
            None => Ok(Value::Nil),
        }
    }

    async fn call_agent(&self, call: Call) -> Result<Value, ErrorReply> {
        let agent = &self.agent;
        let nothing = |()| Value::Nil;
        let result = match call {
            Call::Ping(message) => Ok(Value::from(message)),
            Call::PingKernel(kernel) | Call::RefreshIdle(kernel) => {
                agent.refresh_idle(kernel).await.map(nothing)
            }
            Call::CreateKernel(kernel, config) => {
                let created = agent.create_kernel(kernel, config).await;
                created.map(|created| value::created(&created, Some(kernel)))
            }
            Call::RestartKernel(kernel, config) => {
                let created = agent.restart_kernel(kernel, config).await;
                created.map(|created| value::created(&created, None))
            }
            Call::DestroyKernel(kernel) => {
                let stats = agent.destroy_kernel(kernel).await;
                stats.map(|stats| stats.map_or(Value::Nil, |stats| from_json(&stats)))
            }
            Call::InterruptKernel(kernel) => agent.interrupt_kernel(kernel).await.map(nothing),
            Call::GetCompletions {
                kernel,
                code,
                options,
            } => {
                let found = agent.get_completions(kernel, code, options).await;
                found.map(|texts| {
                    let texts = texts.into_iter().map(Value::from).collect();
                    map([("completions", Value::Array(texts))])
                })
            }
            Call::Execute {
                api_version,
                kernel,
                request,
            } => match agent.execute(kernel, request).await {
                Ok(None) => return Err(ErrorReply::no_result()),
                Ok(Some(reply)) => Ok(value::execution(&reply, api_version)),
                Err(error) => Err(error),
            },
            Call::StartService {
                kernel,
                service,
                options,
            } => {
                let started = agent.start_service(kernel, service, options).await;
                started.map(|started| value::service_start(&started))
            }
            Call::UploadFile { kernel, path, data } => {
                agent.upload_file(kernel, path, data).await.map(nothing)
            }
            Call::DownloadFile(kernel, path) => {
                let archive = agent.download_file(kernel, path).await;
                archive.map(|archive| Value::Binary(archive.into()))
            }
            Call::ListFiles(kernel, path) => {
                let listing = agent.list_files(kernel, path).await;
                listing.map(|listing| value::listing(&listing))
            }
            Call::GetLogs(kernel) => {
                let logs = agent.get_logs(kernel).await;
                logs.map(|logs| map([("logs", Value::from(logs))]))
            }
            Call::ShutdownAgent => Ok(Value::Nil),
            Call::ResetAgent | Call::CleanAllKernels => agent.reset_agent().await.map(nothing),
            Call::AddImage(name) => {
                let added = agent.add_image(name).await;
                added.map(|image| value::agent_image(&image))
            }
            Call::ListKernels => {
                let kernels = agent.list_kernels().await;
                kernels.map(|ids| Value::Array(ids.iter().map(|id| Value::from(id.to_string())).collect()))
            }
        };
        result.map_err(|error| encode_error(&error))
    }
}

/// Writes replies until the reading side has ended.
async fn write(
    writer: &mut Writer,
    replies: &mut mpsc::Receiver<Message>,
    pinged: &mut mpsc::Receiver<Bytes>,
) -> Result<(), ZmtpError> {
    loop {
        tokio::select! {
            Some(context) = pinged.recv() => writer.pong(&context).await?,
            reply = replies.recv() => match reply {
                Some(reply) => writer.send(&reply).await?,
                None => return Ok(()),
            },
        }
    }
}
