//! Terminals of kernels over ZeroMQ (`agent-protocol.md` 6.8): what is typed goes by PUB to the kernel's port 2002, what is
//! printed comes by SUB from its port 2003. One frame is so many raw bytes; frames have no meaning of their own.
//!
//! The first keys are not lost: nothing is sent before the other end has subscribed, which in 19.06 is the slow joiner.
//!
//! Not here: the window's size and restarts, which are calls; base64 and JSON of the gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bai_model::random::Random;
use bytes::Bytes;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::zmtp::{
    AllowList, Connection, Endpoint, Incoming, Limits, Link, LinkOptions, Listener, ListenerOptions,
    SocketType, Writer, ZmtpError, subscription,
};

/// A terminal reads and writes 4096 bytes at a time; a paste is longer.
const LIMITS: Limits = Limits {
    frames: 4,
    bytes: 1 << 20,
};
/// Frames that may wait for a slow reader before it loses some.
pub const BACKLOG: usize = 1024;
/// Terminals open at the same time on one kernel.
const MAX_PEERS: usize = 64;

/// The gateway's end.
#[derive(Debug)]
pub struct Terminal {
    input: TerminalInput,
    output: TerminalOutput,
}

/// Where one types.
#[derive(Debug)]
pub struct TerminalInput(Link);

/// Where one reads.
#[derive(Debug)]
pub struct TerminalOutput(Link);

impl Terminal {
    /// Connects to `stdin_port` and `stdout_port` of the kernel's host, and again whenever a connection breaks.
    pub fn connect(host: &str, stdin_port: u16, stdout_port: u16, random: Arc<dyn Random>) -> Self {
        let options = LinkOptions {
            limits: LIMITS,
            tls: None,
            random,
        };
        let endpoint = |port| Endpoint {
            host: host.to_owned(),
            port,
        };
        let input = Link::connect(endpoint(stdin_port), SocketType::Pub, options.clone());
        let output = Link::connect(endpoint(stdout_port), SocketType::Sub, options);
        Self {
            input: TerminalInput(input),
            output: TerminalOutput(output),
        }
    }

    /// Waits until what is typed arrives and what is printed comes.
    pub async fn ready(&self) {
        tokio::join!(self.input.0.ready(), self.output.0.ready());
    }

    /// Both directions, to go on side by side.
    pub fn split(self) -> (TerminalInput, TerminalOutput) {
        (self.input, self.output)
    }

    /// As [`TerminalInput::send`].
    pub async fn send(&self, typed: Bytes) {
        self.input.send(typed).await;
    }

    /// As [`TerminalOutput::recv`].
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.output.recv().await
    }
}

impl TerminalInput {
    /// Types. Waits while the terminal does not read; dropped while there is no connection.
    pub async fn send(&self, typed: Bytes) {
        self.0.send(vec![typed]).await;
    }
}

impl TerminalOutput {
    /// What was printed next.
    pub async fn recv(&mut self) -> Option<Bytes> {
        let frames = self.0.recv().await?;
        Some(frames.concat().into())
    }
}

/// The kernel's end: a SUB and a PUB that are bound.
#[derive(Debug)]
pub struct TerminalServer {
    input: Listener,
    output: Listener,
    printed: broadcast::Sender<Bytes>,
    typed: mpsc::Sender<Bytes>,
    watched: Arc<Notify>,
}

impl TerminalServer {
    /// Binds both addresses. What is typed comes out of the receiver; what goes into the sender is printed everywhere.
    ///
    /// # Errors
    /// When one cannot be bound.
    pub async fn bind(
        input: SocketAddr,
        output: SocketAddr,
        allow: AllowList,
    ) -> io::Result<(Self, mpsc::Receiver<Bytes>, broadcast::Sender<Bytes>)> {
        let options = ListenerOptions {
            allow,
            max_peers: MAX_PEERS,
            limits: LIMITS,
            tls: None,
        };
        let (typed, receiver) = mpsc::channel(BACKLOG);
        let printed = broadcast::Sender::new(BACKLOG);
        let server = Self {
            input: Listener::bind(input, SocketType::Sub, options.clone()).await?,
            output: Listener::bind(output, SocketType::Pub, options).await?,
            printed: printed.clone(),
            typed,
            watched: Arc::default(),
        };
        Ok((server, receiver, printed))
    }

    /// Notified (one waiter) whenever somebody begins to see what is printed.
    pub fn watched(&self) -> Arc<Notify> {
        Arc::clone(&self.watched)
    }

    /// Where typing and printing listen.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addrs(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.input.local_addr()?, self.output.local_addr()?))
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (typed, printed, watched) = (self.typed, self.printed, self.watched);
        let input = {
            let stop = stop.clone();
            move |connection: Connection| {
                let (typed, stop) = (typed.clone(), stop.clone());
                async move {
                    let peer = connection.peer;
                    if let Some(Err(error)) = stop.run_until_cancelled(listen(connection, typed)).await {
                        tracing::debug!(peer.addr = %peer, %error, "a terminal's connection broke");
                    }
                }
            }
        };
        let output = {
            let stop = stop.clone();
            move |connection: Connection| {
                let (printed, watched, stop) = (printed.subscribe(), watched.clone(), stop.clone());
                async move {
                    let peer = connection.peer;
                    if let Some(Err(error)) = stop
                        .run_until_cancelled(show(connection, printed, &watched))
                        .await
                    {
                        tracing::debug!(peer.addr = %peer, %error, "a terminal's connection broke");
                    }
                }
            }
        };
        tokio::join!(self.input.run(&stop, input), self.output.run(&stop, output));
    }
}

/// Takes what a peer types.
async fn listen(mut connection: Connection, typed: mpsc::Sender<Bytes>) -> Result<(), ZmtpError> {
    connection.writer.send(&subscription(b"")).await?;
    while let Some(incoming) = connection.reader.next().await? {
        match incoming {
            Incoming::Message(frames) if typed.send(frames.concat().into()).await.is_err() => return Ok(()),
            incoming => answer(&mut connection.writer, &incoming).await?,
        }
    }
    Ok(())
}

/// Shows a peer what is printed, from its subscription on.
async fn show(
    mut connection: Connection,
    mut printed: broadcast::Receiver<Bytes>,
    watched: &Notify,
) -> Result<(), ZmtpError> {
    let mut is_subscribed = false;
    loop {
        tokio::select! {
            incoming = connection.reader.next() => match incoming? {
                None => return Ok(()),
                Some(Incoming::Message(frames)) => {
                    // Whatever the prefix: 19.06 asks for everything.
                    is_subscribed = frames.first().is_some_and(|frame| frame.first() == Some(&1));
                    if is_subscribed {
                        watched.notify_one();
                    }
                }
                Some(incoming) => answer(&mut connection.writer, &incoming).await?,
            },
            next = printed.recv() => match next {
                Ok(bytes) if is_subscribed => connection.writer.send(&[bytes]).await?,
                // A reader that is too slow misses something, as a PUB has it.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
        }
    }
}

async fn answer(writer: &mut Writer, incoming: &Incoming) -> Result<(), ZmtpError> {
    match incoming {
        Incoming::Command(crate::zmtp::Command::Ping { context }) => writer.pong(context).await,
        _ => Ok(()),
    }
}
