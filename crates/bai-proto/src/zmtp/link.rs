//! A connection that is made again whenever it breaks, for what flows in one direction: PUSH, PULL, PUB and SUB.
//!
//! Invariants: messages go and come in order; a PUSH keeps a message until it is written whole, so that a broken connection
//! can double a message but not lose one that waits; a PUB sends nothing to a peer that has not subscribed yet, and drops
//! what it cannot send.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bai_model::random::Random;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::codec::{Command, Incoming, Limits, Message, SocketType, ZmtpError, subscription};
use super::connection::{Connection, Reader, Writer};
use super::endpoint::{Backoff, Endpoint, dial};
use super::tls::Tls;

/// How many messages may wait in either direction.
const QUEUE: usize = 1000;

/// What a link needs besides its endpoint.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    pub limits: Limits,
    pub tls: Option<Tls>,
    pub random: Arc<dyn Random>,
}

/// The queue is full: the peer is away or slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{QUEUE} messages wait already")]
pub struct Full;

/// One end. Dropping it ends the connection.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Message>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    ours: SocketType,
    options: LinkOptions,
    queue: Mutex<VecDeque<Message>>,
    /// A message was put into the queue.
    filled: Notify,
    /// A message was taken from the queue.
    drained: Notify,
    /// Whether what is sent now would be written.
    is_ready: watch::Sender<bool>,
}

impl Link {
    /// Starts connecting to `endpoint` as `ours`, and goes on until dropped.
    pub fn connect(endpoint: Endpoint, ours: SocketType, options: LinkOptions) -> Self {
        let shared = Arc::new(Shared {
            endpoint,
            ours,
            options,
            queue: Mutex::default(),
            filled: Notify::new(),
            drained: Notify::new(),
            is_ready: watch::Sender::new(false),
        });
        let (sender, incoming) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let work = {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            async move { stop.run_until_cancelled(shared.keep_connected(sender)).await }
        };
        // Ends with the drop guard below; there is nothing to clean up after it.
        drop(tokio::spawn(work));
        Self {
            shared,
            incoming,
            _stop: stop.drop_guard(),
        }
    }

    /// Puts a message into the queue; waits while it is full. A PUB without a subscriber drops it.
    pub async fn send(&self, message: Message) {
        let mut message = message;
        loop {
            let drained = self.shared.drained.notified();
            match self.shared.put(message) {
                Ok(()) => return,
                Err(back) => message = back,
            }
            drained.await;
        }
    }

    /// As [`Link::send`], without waiting.
    ///
    /// # Errors
    /// [`Full`] when the queue is.
    pub fn try_send(&self, message: Message) -> Result<(), Full> {
        self.shared.put(message).map_err(|_| Full)
    }

    /// Puts `message` in the place of a waiting one that it makes obsolete, and otherwise into the queue as
    /// [`Link::try_send`].
    ///
    /// # Errors
    /// [`Full`] when it replaces none and the queue is full.
    pub fn replace(&self, message: Message, is_obsolete: impl Fn(&Message) -> bool) -> Result<(), Full> {
        {
            let mut queue = self.shared.queue();
            // The first may be half written already.
            if let Some(old) = queue.iter_mut().skip(1).find(|old| is_obsolete(old)) {
                *old = message;
                return Ok(());
            }
        }
        self.try_send(message)
    }

    /// The next message from the peer.
    pub async fn recv(&mut self) -> Option<Message> {
        self.incoming.recv().await
    }

    /// Waits until the peer is connected and, for a PUB, has subscribed.
    pub async fn ready(&self) {
        // The sender lives as long as this.
        _ = self.shared.is_ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Ends the connection; what still waits, in its order. The first may be on its way already.
    pub fn into_waiting(self) -> Vec<Message> {
        std::mem::take(&mut *self.shared.queue()).into()
    }

    /// Waits until everything in the queue is written.
    pub async fn flushed(&self) {
        loop {
            let drained = self.shared.drained.notified();
            if self.shared.queue().is_empty() {
                return;
            }
            drained.await;
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the message back when the queue is full.
    fn put(&self, message: Message) -> Result<(), Message> {
        if self.ours == SocketType::Pub && !*self.is_ready.borrow() {
            return Ok(());
        }
        let mut queue = self.queue();
        if queue.len() >= QUEUE {
            return Err(message);
        }
        queue.push_back(message);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    /// Until cancelled, or nobody receives any more.
    async fn keep_connected(&self, incoming: mpsc::Sender<Message>) {
        let LinkOptions { limits, tls, random } = &self.options;
        let mut backoff = Backoff::new();
        let mut was_told = false;
        loop {
            let ended = match dial(&self.endpoint, self.ours, *limits, tls.as_ref()).await {
                Ok(connection) => {
                    (backoff, was_told) = (Backoff::new(), false);
                    let ended = self.serve(connection, &incoming).await;
                    self.is_ready.send_replace(false);
                    if self.ours == SocketType::Pub {
                        self.queue().clear();
                    }
                    ended.err().map(|error| error.to_string())
                }
                Err(error) => Some(error.to_string()),
            };
            if incoming.is_closed() {
                return;
            }
            if !was_told {
                let reason = ended.as_deref().unwrap_or("the peer closed the connection");
                tracing::warn!(peer.endpoint = %self.endpoint, socket = %self.ours, reason, "a connection is being made again");
                was_told = true;
            }
            tokio::time::sleep(backoff.pause(random.as_ref())).await;
        }
    }

    /// Until the connection ends or breaks.
    async fn serve(&self, connection: Connection, incoming: &mpsc::Sender<Message>) -> Result<(), ZmtpError> {
        let Connection {
            mut reader,
            mut writer,
            ..
        } = connection;
        if self.ours == SocketType::Sub {
            writer.send(&subscription(b"")).await?;
        }
        if self.ours != SocketType::Pub {
            self.is_ready.send_replace(true);
        }
        let (pings, mut pinged) = mpsc::channel(4);
        tokio::select! {
            ended = self.read(&mut reader, incoming, &pings) => ended,
            ended = self.write(&mut writer, &mut pinged) => ended,
        }
    }

    async fn read(
        &self,
        reader: &mut Reader,
        incoming: &mpsc::Sender<Message>,
        pings: &mpsc::Sender<bytes::Bytes>,
    ) -> Result<(), ZmtpError> {
        while let Some(arrived) = reader.next().await? {
            match arrived {
                // A peer that does not read its PONGs needs no more of them.
                Incoming::Command(Command::Ping { context }) => _ = pings.try_send(context),
                Incoming::Command(_) => {}
                Incoming::Message(message) if matches!(self.ours, SocketType::Pull | SocketType::Sub) => {
                    if incoming.send(message).await.is_err() {
                        return Ok(());
                    }
                }
                Incoming::Message(message) => {
                    let is_subscription = message.first().is_some_and(|frame| frame.first() == Some(&1));
                    // A PUSH is not spoken to.
                    if self.ours == SocketType::Pub && is_subscription {
                        self.is_ready.send_replace(true);
                    }
                }
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        writer: &mut Writer,
        pinged: &mut mpsc::Receiver<bytes::Bytes>,
    ) -> Result<(), ZmtpError> {
        loop {
            while let Ok(context) = pinged.try_recv() {
                writer.pong(&context).await?;
            }
            let next = self.queue().front().cloned();
            let Some(message) = next else {
                tokio::select! {
                    () = self.filled.notified() => {}
                    Some(context) = pinged.recv() => writer.pong(&context).await?,
                }
                continue;
            };
            writer.send(&message).await?;
            self.queue().pop_front();
            self.drained.notify_waiters();
        }
    }
}
