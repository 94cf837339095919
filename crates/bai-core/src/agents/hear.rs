//! What agents on other hosts tell: put in order by agent, and checked before anything is recorded.
//!
//! Invariants: events of one agent are handled one after the other, those of different agents side by side; what waits is
//! bounded, and what is left out for that is found by comparing the agent with the records. A heartbeat that says nothing
//! new costs no task and no call to anybody.

use std::net::SocketAddr;
use std::sync::Arc;

use bai_model::{AgentId, AgentStatus};
use bai_proto::event::{AgentEvent, AgentInfo, Received};
use tokio::sync::mpsc;

use super::{Agents, Letter, MAX_AGENTS};
use crate::{Manager, Result};

/// One task works at an agent's events. Should it panic, the next event finds that nobody does.
struct Working<'a> {
    agents: &'a Agents,
    agent: &'a AgentId,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(known) = self.agents.lock().agents.get_mut(self.agent)
        {
            known.inbox.leave();
        }
    }
}

impl Agents {
    /// Puts a letter into an agent's inbox. True when somebody has to begin to work at it.
    fn put(&self, agent: &AgentId, letter: Letter) -> std::result::Result<bool, Refusal> {
        let mut directory = self.lock();
        if !directory.agents.contains_key(agent) && directory.agents.len() >= MAX_AGENTS {
            return Err(Refusal::TooMany);
        }
        let known = directory.agents.entry(agent.clone()).or_default();
        Ok(known.inbox.put(letter))
    }

    fn take(&self, agent: &AgentId) -> Option<Letter> {
        self.lock().agents.get_mut(agent)?.inbox.take()
    }

    fn take_missed(&self, agent: &AgentId) -> u64 {
        let mut directory = self.lock();
        let known = directory.agents.get_mut(agent);
        known.map_or(0, |known| known.inbox.take_missed())
    }

    /// Logs that an event was refused, now and then if it happens often.
    pub(crate) fn log_refusal(&self, agent: &AgentId, peer: Option<SocketAddr>, refusal: &Refusal) {
        let mut directory = self.lock();
        let known = directory.agents.get_mut(agent);
        let Some(times) = known.map_or(Some(1), |known| known.inbox.refuse()) else {
            return;
        };
        drop(directory);
        let peer = peer.map_or_else(|| "this process".to_owned(), |peer| peer.to_string());
        tracing::warn!(peer.addr = %peer, agent.id = %agent, times, error = %refusal, "an event is refused");
    }
}

/// Why an event changes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there are {MAX_AGENTS} agents already; restrict who may send events with event-peers in [bai]")]
    TooMany,
    #[error(
        "it says that it is called at {addr}, but it is alive at {known}: if two hosts have the same agent id, rename one; \
         if it has moved, it is taken in when nothing was heard of it for the heartbeat-timeout"
    )]
    OtherAddress { addr: String, known: String },
    #[error("the kernel {0} is none of this site's")]
    UnknownKernel(bai_model::KernelId),
    #[error("the kernel {0} is not this agent's")]
    ForeignKernel(bai_model::KernelId),
}

impl Manager {
    /// Takes in what agents on other hosts tell, until the manager stops.
    pub fn hear_agents(self: &Arc<Self>, mut events: mpsc::Receiver<Received>) {
        let manager = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                let received = tokio::select! {
                    () = manager.stopping.cancelled() => break,
                    received = events.recv() => received,
                };
                match received {
                    Some(received) => manager.hear(received),
                    None => break,
                }
            }
        });
    }

    fn hear(self: &Arc<Self>, Received { agent, peer, event }: Received) {
        if let AgentEvent::InstanceHeartbeat(info) = &event
            && self.agents.hears_again(info, self.clock.now())
        {
            return;
        }
        match self.agents.put(&agent, Letter { peer, event }) {
            Ok(false) => {}
            Ok(true) => {
                let manager = Arc::clone(self);
                self.tasks.spawn(async move { manager.work_at(&agent).await });
            }
            Err(refusal) => self.agents.log_refusal(&agent, Some(peer), &refusal),
        }
    }

    /// Handles an agent's events until none waits.
    async fn work_at(self: &Arc<Self>, agent: &AgentId) {
        let _working = Working {
            agents: &self.agents,
            agent,
        };
        while let Some(Letter { peer, event }) = self.agents.take(agent) {
            let handled = match event {
                AgentEvent::InstanceHeartbeat(info) => self.hear_heartbeat(peer, info).await,
                event => self.handle_event(agent, Some(peer), event).await,
            };
            if let Err(error) = handled {
                tracing::error!(agent.id = %agent, %error, "what an agent told could not be recorded; it will be found out");
                self.agents.compare_soon(agent);
            }
            let missed = self.agents.take_missed(agent);
            if missed > 0 {
                tracing::warn!(agent.id = %agent, missed, "an agent told more than could be recorded; it will be compared with the records");
                self.agents.compare_soon(agent);
            }
            if self.stopping.is_cancelled() {
                break;
            }
        }
    }

    /// Records what is new in a heartbeat, unless the agent is alive at another address: then two hosts have its id, or it
    /// has moved, which is seen when the other address falls silent.
    async fn hear_heartbeat(self: &Arc<Self>, peer: SocketAddr, info: AgentInfo) -> Result<()> {
        // It may have been recorded while this one waited.
        if self.agents.hears_again(&info, self.clock.now()) {
            return Ok(());
        }
        let _turn = self.agents.turn_at_records().await;
        let row = self.store.reader().agent(&info.id).await?;
        if let Some(row) = row
            && row.status == AgentStatus::Alive
            && row.addr != info.addr
        {
            let refusal = Refusal::OtherAddress {
                addr: info.addr,
                known: row.addr,
            };
            self.agents.log_refusal(&info.id, Some(peer), &refusal);
            return Ok(());
        }
        self.record_heartbeat(info).await
    }
}
