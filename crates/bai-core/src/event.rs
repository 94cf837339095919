//! What agents tell unasked (`agent-protocol.md` 3.2), recorded: they come and leave, kernels end.
//!
//! Invariants: events of one agent are handled in their order; an event may come late, twice or never, and the reconciler
//! finds the same without it. What an agent tells of a kernel that is not its own changes nothing, and that a kernel has
//! ended is believed when the agent, being asked, agrees.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::{AgentId, AgentStatus, ImageRef, KernelId, KernelStatus};
use bai_proto::event::{AgentEvent, AgentInfo};
use bai_store::agent::AgentChange;
use bai_store::kernel::KernelRow;
use serde_json::Value;

use crate::agents::Refusal;
use crate::compare::Seen;
use crate::lifecycle::Lifecycle;
use crate::reconcile::wait_for;
use crate::{Manager, Result};

/// How long after a kernel was told to have ended an agent that still answers for it is asked again: such an agent may not
/// have put it away yet, or the end was that of an earlier life (`agent-protocol.md` 5.14, item 7).
const END_GRACE: Duration = Duration::from_secs(5);

/// What an agent told of a kernel's end.
#[derive(Clone, Debug)]
struct Ending {
    kernel: KernelId,
    reason: String,
    stats: Option<Value>,
}

/// Kernels whose end was told and is being found out.
#[derive(Debug, Default)]
pub(crate) struct Endings(Mutex<HashSet<KernelId>>);

impl Endings {
    fn lock(&self) -> MutexGuard<'_, HashSet<KernelId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when it is being found out already.
    fn begin(&self, kernel: KernelId) -> bool {
        self.lock().insert(kernel)
    }
}

/// Ends what [`Endings::begin`] began, by a panic too.
struct Over<'a> {
    endings: &'a Endings,
    kernel: KernelId,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.endings.lock().remove(&self.kernel);
    }
}

impl Manager {
    /// Records what an agent tells; `peer` is where that came from, if from another host.
    pub(crate) async fn handle_event(
        self: &Arc<Self>,
        agent: &AgentId,
        peer: Option<SocketAddr>,
        event: AgentEvent,
    ) -> Result<()> {
        match event {
            AgentEvent::InstanceHeartbeat(info) => {
                self.agents.note_said(&info);
                self.record_heartbeat(info).await?;
            }
            // Its heartbeat has said the same, but it may have lost kernels since it was here.
            AgentEvent::InstanceStarted { .. } => {
                self.agents.compare_soon(agent);
                self.nudge_reconcilers();
            }
            AgentEvent::InstanceTerminated { reason, .. } => self.agent_left(agent, &reason).await?,
            AgentEvent::KernelTerminated {
                kernel,
                reason,
                stats,
                ..
            } => {
                let ending = Ending {
                    kernel,
                    reason,
                    stats,
                };
                let row = self.store.reader().kernel(kernel).await?;
                let refusal = match &row {
                    None => Some(Refusal::UnknownKernel(kernel)),
                    Some(row) if row.agent.as_ref() != Some(agent) => Some(Refusal::ForeignKernel(kernel)),
                    Some(_) => None,
                };
                match refusal {
                    Some(refusal) => self.agents.log_refusal(agent, peer, &refusal),
                    None => self.hear_of_end(agent, ending).await?,
                }
            }
            AgentEvent::KernelPulling { kernel, .. } => self.announce(kernel, Lifecycle::Pulling, ""),
            AgentEvent::KernelCreating { kernel } => self.announce(kernel, Lifecycle::Creating, ""),
            // The record says the same, and is what counts.
            AgentEvent::KernelPreparing { kernel } | AgentEvent::KernelStarted { kernel } => {
                tracing::debug!(agent.id = %agent, kernel.id = %kernel, ?event, "a kernel came nearer");
            }
        }
        Ok(())
    }

    /// Records that an agent has left. Its sessions stay as they are and come back with it.
    async fn agent_left(&self, agent: &AgentId, reason: &str) -> Result<()> {
        let mut tx = self.store.begin().await?;
        // One that nobody knows has not been here, and one that is lost stays so until it is heard.
        let was_here = tx
            .lock_agent(agent)
            .await?
            .is_some_and(|row| !row.status.is_gone());
        if was_here {
            tracing::info!(agent.id = %agent, reason, "an agent left");
            tx.set_agent_status(agent, AgentStatus::Terminated, Some(self.clock.now()))
                .await?;
        }
        tx.commit().await?;
        self.agents.note_left(agent);
        self.forget_heartbeats(agent).await;
        Ok(())
    }

    /// Finds out whether a kernel has ended as it was told: at once where the agent is in this process, and else beside its
    /// other events, because it may take long to answer.
    async fn hear_of_end(self: &Arc<Self>, agent: &AgentId, ending: Ending) -> Result<()> {
        let work = self.in_flight.receiver(ending.kernel);
        if work.is_none() && self.agents.is_local(agent) {
            self.kernel_ended(agent, &ending, true).await?;
            return Ok(());
        }
        if !self.endings.begin(ending.kernel) {
            return Ok(());
        }
        let (manager, agent) = (Arc::clone(self), agent.clone());
        self.tasks.spawn(async move {
            let _over = Over {
                endings: &manager.endings,
                kernel: ending.kernel,
            };
            // The kernel may have died right after it was started; what is going on decides first.
            if let Some(work) = work {
                wait_for(work).await;
            }
            if let Err(error) = manager.find_out(&agent, &ending).await {
                tracing::error!(kernel.id = %ending.kernel, %error, "a kernel's end could not be recorded; the reconciler will catch up");
                manager.agents.compare_soon(&agent);
            }
        });
        Ok(())
    }

    async fn find_out(&self, agent: &AgentId, ending: &Ending) -> Result<()> {
        if self.kernel_ended(agent, ending, false).await? {
            return Ok(());
        }
        if self.has_slept(END_GRACE).await {
            self.kernel_ended(agent, ending, true).await?;
        }
        Ok(())
    }

    /// Whether so much time has passed without the manager being stopped.
    async fn has_slept(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.stopping.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Records the end of a kernel that its agent told of, unless the record or the agent knows better. The event does not
    /// say which life of a restarted kernel ended. False when the agent should be asked again later, which it should not
    /// be twice.
    async fn kernel_ended(&self, agent: &AgentId, ending: &Ending, is_last_look: bool) -> Result<bool> {
        let Some(row) = self.store.reader().kernel(ending.kernel).await? else {
            return Ok(true);
        };
        // While restarting, the end of the old processes is expected.
        let is_expected = matches!(
            row.status,
            None | Some(KernelStatus::Restarting | KernelStatus::Terminated)
        );
        if is_expected {
            return Ok(true);
        }
        let seen = match self.agent(agent).await? {
            Some(rpc) => self.look_for(&rpc, row.id).await,
            // It ended its kernels and left, and has not come back meanwhile.
            None if is_last_look && self.has_left(agent).await? => Seen::Gone,
            None => Seen::Nothing,
        };
        match seen {
            Seen::Gone => {
                tracing::info!(agent.id = %agent, kernel.id = %row.id, reason = ending.reason, "a kernel ended");
                self.end_unless_changed(&row, &ending.reason, ending.stats.clone(), None)
                    .await?;
                Ok(true)
            }
            Seen::Answering if !is_last_look => Ok(false),
            Seen::Listed | Seen::Answering => {
                tracing::debug!(agent.id = %agent, kernel.id = %row.id, reason = ending.reason, "an earlier life of a kernel ended");
                self.nudge_reconcilers();
                Ok(true)
            }
            // An agent that is stopping answers nothing any more, and says a moment later that it has left.
            Seen::Nothing if !is_last_look => Ok(false),
            Seen::Nothing => {
                self.agents.compare_soon(agent);
                self.nudge_reconcilers();
                Ok(true)
            }
        }
    }

    async fn has_left(&self, agent: &AgentId) -> Result<bool> {
        let row = self.store.reader().agent(agent).await?;
        Ok(row.is_some_and(|row| row.status == AgentStatus::Terminated))
    }

    /// Records that a kernel ended if its record is as it was when that was found out: it may have been restarted since.
    pub(crate) async fn end_unless_changed(
        &self,
        row: &KernelRow,
        reason: &str,
        stats: Option<Value>,
        duty: Option<&crate::cluster::Duty>,
    ) -> Result<bool> {
        let stats = self.last_statistics(row.id, stats).await;
        let mut tx = self.store.begin().await?;
        if let Some(duty) = duty {
            self.fence(&mut tx, duty).await?;
        }
        let now = tx.kernel(row.id).await?;
        let is_unchanged =
            now.is_some_and(|now| (now.status, &now.container_id) == (row.status, &row.container_id));
        if is_unchanged {
            let has_ended = tx
                .terminate_kernel(row.id, reason, self.clock.now(), stats)
                .await?;
            tx.commit().await?;
            if has_ended {
                self.announce(row.id, Lifecycle::Terminated, reason);
            }
        }
        Ok(is_unchanged)
    }

    /// The last statistics of a kernel: what its agent `told`, or else what one of 19.06 left in the broker
    /// (`agent-protocol.md` 3.6, 5.7).
    pub(crate) async fn last_statistics(&self, kernel: KernelId, told: Option<Value>) -> Option<Value> {
        if told.is_some() {
            return told;
        }
        let left = self.broker.get(&kernel.to_string()).await;
        let left = left.inspect_err(
            |error| tracing::debug!(kernel.id = %kernel, %error, "the last statistics of a kernel could not be read"),
        );
        let decoded = bai_proto::msgpack::decode(&left.ok()??).ok()?;
        bai_proto::msgpack::to_json(&decoded).filter(Value::is_object)
    }

    /// Records all that an agent says of itself, of which only what differs is written. What fails is tried again: at the
    /// next heartbeat, or by [`Manager::speak_for_agents`] for an agent of this process.
    pub(crate) async fn record_heartbeat(&self, info: AgentInfo) -> Result<()> {
        let registries = self.catalogue.known_registries().await?;
        self.add_slot_types(&info).await?;
        self.register_agent_images(&info.images).await?;
        let agent = bai_store::agent::NewAgent {
            id: info.id.clone(),
            region: info.region.clone(),
            addr: info.addr.clone(),
            version: info.version.clone(),
            available_slots: info.available_slots.clone(),
            compute_plugins: info.compute_plugins.clone(),
        };
        let mut tx = self.store.begin().await?;
        let change = tx.upsert_agent(&agent, self.clock.now()).await?;
        tx.commit().await?;
        let is_new = self.agents.note_recorded(&info, images_of(&info, &registries));
        // At once, so that the broker knows everybody whom later calls name, or has forgotten.
        let beat = [(info.id.0.clone(), self.clock.now())];
        if let Err(error) = self.broker.beat(&beat).await {
            tracing::warn!(agent.id = %info.id, %error, "a heartbeat could not be noted");
        }
        match change {
            AgentChange::Joined => {
                tracing::info!(agent.id = %info.id, addr = info.addr, version = info.version, "an agent joined")
            }
            AgentChange::Revived => {
                tracing::info!(agent.id = %info.id, addr = info.addr, version = info.version, "an agent is back")
            }
            AgentChange::Changed => tracing::info!(agent.id = %info.id, "an agent is not as it was"),
            AgentChange::Unchanged => {}
        }
        if is_new || matches!(change, AgentChange::Joined | AgentChange::Revived) {
            self.agents.compare_soon(&info.id);
        }
        self.registered.send_replace(true);
        self.nudge_reconcilers();
        Ok(())
    }

    /// Adds the types of an agent's slots to those of the site: the union over agents, not the last one's (DM-41).
    async fn add_slot_types(&self, info: &AgentInfo) -> Result<()> {
        let known = self.slot_types().await?;
        let new: Vec<(String, String)> = info
            .slot_types
            .iter()
            .filter(|(name, unit)| !matches!(*name, "cpu" | "mem") && known.unit(name) != Some(*unit))
            .map(|(name, unit)| (format!("config/resource_slots/{name}"), unit.as_str().to_owned()))
            .collect();
        if !new.is_empty() {
            self.config.put_all(&new).await?;
            self.slot_types.forget();
            self.catalogue.forget();
        }
        Ok(())
    }
}

/// The images that an agent has, by their canonical names: those that it brings, and those of the catalogue.
fn images_of(info: &AgentInfo, registries: &[String]) -> Vec<String> {
    let brought = info.images.iter().map(|image| image.canonical.clone());
    let installed = info.installed.iter().filter_map(|image| {
        let reference = ImageRef::parse(&image.repo_tag, registries).ok()?;
        Some(reference.canonical())
    });
    brought.chain(installed).collect()
}
