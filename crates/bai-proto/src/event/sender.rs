//! An agent's end of the events: a PUSH that stays connected (`agent-protocol.md` 3.1).

use bai_model::AgentId;

use super::{AgentEvent, encode};
use crate::zmtp::{Endpoint, Link, LinkOptions, Message, SocketType};

const HEARTBEAT: &[u8] = b"instance_heartbeat";

/// Sends the events of one agent, in order. What cannot be sent yet waits; of waiting heartbeats only the last is kept.
#[derive(Debug)]
pub struct EventSender {
    agent: AgentId,
    link: Link,
}

impl EventSender {
    /// Starts connecting to a manager's event address.
    pub fn connect(agent: AgentId, endpoint: Endpoint, options: LinkOptions) -> Self {
        Self {
            agent,
            link: Link::connect(endpoint, SocketType::Push, options),
        }
    }

    /// Puts an event behind the others; waits while a thousand wait already. A heartbeat never waits: there will be another.
    pub async fn send(&self, event: &AgentEvent) {
        let message = encode(&self.agent, event);
        if !is_heartbeat(&message) {
            return self.link.send(message).await;
        }
        if self.link.replace(message, is_heartbeat).is_err() {
            tracing::debug!(agent.id = %self.agent, "a heartbeat is left out: no manager takes events");
        }
    }

    /// Sends to another manager from now on, what waits first.
    pub fn redirect(&mut self, endpoint: Endpoint, options: LinkOptions) {
        let link = Link::connect(endpoint, SocketType::Push, options);
        for message in std::mem::replace(&mut self.link, link).into_waiting() {
            // Both queues have the same size, and this one is empty.
            _ = self.link.try_send(message);
        }
    }

    /// Waits until every event is on its way, for an orderly end.
    pub async fn flushed(&self) {
        self.link.flushed().await;
    }

    /// Waits for a manager.
    pub async fn connected(&self) {
        self.link.ready().await;
    }
}

fn is_heartbeat(message: &Message) -> bool {
    message.first().is_some_and(|name| name == HEARTBEAT)
}
