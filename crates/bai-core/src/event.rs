//! What agents tell unasked (`agent-protocol.md` 3.2), recorded: they come and leave, kernels end.
//!
//! Invariants: events of one agent are handled in their order; an event may come late, twice or never, and the reconciler
//! finds the same without it.

use std::sync::Arc;

use bai_model::{AgentId, AgentStatus, KernelId, KernelStatus};
use bai_proto::event::{AgentEvent, AgentInfo};
use bai_store::kernel::KernelRow;
use serde_json::Value;

use crate::lifecycle::Lifecycle;
use crate::reconcile::wait_for;
use crate::{Manager, Result};

impl Manager {
    /// Records what an agent tells.
    pub(crate) async fn handle_event(self: &Arc<Self>, agent: &AgentId, event: AgentEvent) -> Result<()> {
        match event {
            AgentEvent::InstanceHeartbeat(info) => {
                self.note_info(&info, false);
                self.record_heartbeat(info).await?;
            }
            // Its heartbeat has said the same.
            AgentEvent::InstanceStarted { .. } => {}
            AgentEvent::InstanceTerminated { agent, reason } => {
                tracing::info!(agent.id = %agent, reason, "an agent left");
                let mut tx = self.store.begin().await?;
                tx.set_agent_status(&agent, AgentStatus::Terminated, Some(self.clock.now()))
                    .await?;
                tx.commit().await?;
                self.note_left(&agent);
                self.forget_heartbeats(&agent).await;
            }
            AgentEvent::KernelTerminated {
                kernel,
                reason,
                stats,
                ..
            } => {
                let Some(work) = self.in_flight.receiver(kernel) else {
                    return self.kernel_ended(agent, kernel, &reason, stats).await;
                };
                // The kernel may have died right after it was started; what is going on decides first.
                let (manager, agent) = (Arc::clone(self), agent.clone());
                self.tasks.spawn(async move {
                    wait_for(work).await;
                    if let Err(error) = manager.kernel_ended(&agent, kernel, &reason, stats).await {
                        tracing::error!(kernel.id = %kernel, %error, "a kernel's end could not be recorded; the reconciler will catch up");
                    }
                });
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

    /// Records the end of a kernel that its agent told of, unless the record or the agent knows better.
    async fn kernel_ended(
        &self,
        agent: &AgentId,
        kernel: KernelId,
        reason: &str,
        stats: Option<Value>,
    ) -> Result<()> {
        let row = self.store.reader().kernel(kernel).await?;
        // While restarting, the end of the old processes is expected.
        let is_expected = |row: KernelRow| {
            matches!(
                row.status,
                None | Some(KernelStatus::Restarting | KernelStatus::Terminated)
            )
        };
        if row.is_none_or(is_expected) {
            return Ok(());
        }
        // The event does not say which life of a restarted kernel ended. While the agent runs the kernel, it was an
        // earlier one (`agent-protocol.md` 5.14, item 7); when it does not say, the reconciler finds out.
        let goes_on = match self.agent(agent) {
            Some(rpc) => self
                .listed(&rpc)
                .await
                .map_or(true, |kernels| kernels.contains(&kernel)),
            None => false,
        };
        if goes_on {
            tracing::debug!(agent.id = %agent, kernel.id = %kernel, reason, "an earlier life of a kernel ended");
            self.nudge_reconcilers();
            return Ok(());
        }
        tracing::info!(agent.id = %agent, kernel.id = %kernel, reason, "a kernel ended");
        self.record_end(None, kernel, reason, stats).await
    }

    /// Records all that an agent says of itself. What fails is tried again ([`Manager::speak_for_agents`]).
    pub(crate) async fn record_heartbeat(&self, info: AgentInfo) -> Result<()> {
        self.note_heartbeat(&info).await;
        let types: Vec<(String, String)> = info
            .slot_types
            .iter()
            .filter(|(name, _)| !matches!(*name, "cpu" | "mem"))
            .map(|(name, unit)| (format!("config/resource_slots/{name}"), unit.as_str().to_owned()))
            .collect();
        // The union over agents, not the last one's (DM-41).
        if !types.is_empty() {
            self.config.put_all(&types).await?;
        }
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
        tx.upsert_agent(&agent, self.clock.now()).await?;
        tx.commit().await?;
        self.note_info(&info, true);
        self.registered.send_replace(true);
        self.nudge_reconcilers();
        Ok(())
    }
}
