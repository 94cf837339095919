//! Publish and subscribe, on channels named `bai:…`.
//!
//! Each subscription has a connection and a task of its own, so that a slow reader hurts itself only; the task ends when
//! the subscription is dropped. After a lost connection it subscribes again and then says [`Message::Gap`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use redis::aio::PubSub as Connection;
use redis::{Client, Cmd};
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::OWN_DB;
use super::RedisBroker;
use super::address::Server;
use super::lane::{Repeat, within};
use crate::Result;
use crate::broker::{Message, PubSub, SUBSCRIBER_BACKLOG, Subscription};

/// A quiet connection is tried this often.
const PING: Duration = Duration::from_secs(10);
/// Pauses between attempts to subscribe again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

#[async_trait]
impl PubSub for RedisBroker {
    async fn publish(&self, channel: &str, payload: Bytes) -> Result<u64> {
        let mut publish = Cmd::new();
        publish.arg("PUBLISH").arg(physical(channel)).arg(&payload[..]);
        self.own.ask(Repeat::No, &publish).await
    }

    async fn subscribe(&self, channel: &str) -> Result<Subscription> {
        let line = Line {
            server: Arc::clone(&self.server),
            client: self.server.client(OWN_DB)?,
            channel: physical(channel),
        };
        let connection = line.listen().await?;
        let (sender, receiver) = broadcast::channel(SUBSCRIBER_BACKLOG);
        tokio::spawn(line.carry(connection, sender));
        let messages = stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(message) => Some((message, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Message::Gap, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Ok(messages.boxed())
    }
}

fn physical(channel: &str) -> String {
    format!("bai:{channel}")
}

/// One channel's way from the server to a subscription.
struct Line {
    server: Arc<Server>,
    client: Client,
    channel: String,
}

impl Line {
    async fn listen(&self) -> Result<Connection> {
        within(&self.server, self.server.deadline, async {
            let mut connection = self.client.get_async_pubsub().await?;
            connection.subscribe(&self.channel).await?;
            Ok(connection)
        })
        .await
    }

    /// Hands messages over until nobody wants them.
    async fn carry(self, mut connection: Connection, messages: broadcast::Sender<Message>) {
        loop {
            if self.hand_over(connection, &messages).await.is_break() {
                return;
            }
            tracing::warn!(channel = %self.channel, "a subscription was interrupted and will resume");
            connection = tokio::select! {
                connection = self.listen_again() => connection,
                () = messages.closed() => return,
            };
            // After subscribing: whoever reads again now misses nothing.
            let _ = messages.send(Message::Gap);
        }
    }

    /// Breaks when nobody wants messages any more, continues when the connection is lost.
    async fn hand_over(
        &self,
        connection: Connection,
        messages: &broadcast::Sender<Message>,
    ) -> ControlFlow<()> {
        let (mut sink, mut incoming) = connection.split();
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = incoming.next() => match message {
                    Some(message) => {
                        let payload = Bytes::copy_from_slice(message.get_payload_bytes());
                        // Without receivers the next round ends this.
                        let _ = messages.send(Message::Payload(payload));
                    }
                    None => return ControlFlow::Continue(()),
                },
                () = messages.closed() => return ControlFlow::Break(()),
                _ = ping.tick() => {
                    let pong: std::result::Result<redis::RedisResult<redis::Value>, _> =
                        timeout(self.server.deadline, sink.ping()).await;
                    if !matches!(pong, Ok(Ok(_))) {
                        return ControlFlow::Continue(());
                    }
                }
            }
        }
    }

    async fn listen_again(&self) -> Connection {
        let mut pause = BACK_OFF.0;
        loop {
            match self.listen().await {
                Ok(connection) => return connection,
                Err(error) => tracing::debug!(channel = %self.channel, %error, "cannot subscribe yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }
}
