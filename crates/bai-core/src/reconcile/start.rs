//! How kernels start: what their agents are told, and what is recorded of the answers.
//!
//! A kernel that was recorded a moment ago is created from what it was recorded by ([`Creation`]); after a crash, and at the
//! second attempt, the same is put together from its record.

use std::collections::HashSet;
use std::sync::Arc;

use bai_model::{AgentId, ImageRef, KernelId, KernelStatus, ResourceSlot, SlotValue, VFolderPermission};
use bai_proto::agent::{AgentError, AgentRpc, ImageConfig, KernelConfig, KernelCreated, Mount};
use bai_store::kernel::{KernelPorts, KernelRow, NewKernel};
use bai_store::vfolder::VFolderRow;
use serde_json::Value;

use super::{CREATION_DEADLINE, CREATION_FAILED, Outcome};
use crate::agents::is_agents_fault;
use crate::cluster::Duty;
use crate::lifecycle::Lifecycle;
use crate::session::Plan;
use crate::together::{Joint, Waiting};
use crate::{Error, Manager, Result};

/// A kernel that is to be created, and what its agent is told.
#[derive(Debug)]
pub(crate) struct Creation {
    pub kernel: KernelId,
    pub agent: AgentId,
    pub config: KernelConfig,
}

/// What a kernel is made of.
struct Wanted<'a> {
    agent: Option<&'a AgentId>,
    image: &'a ImageConfig,
    slots: &'a ResourceSlot,
    environ: &'a [String],
    mounts: Vec<VFolderRow>,
    /// In seconds.
    idle_timeout: i64,
}

/// A kernel that an agent has started, to be recorded.
#[derive(Debug)]
pub(crate) struct Start {
    kernel: KernelId,
    from: KernelStatus,
    ports: KernelPorts,
}

impl Joint for Start {
    /// Whether it was still to be started.
    type Outcome = bool;

    const NAME: &str = "recording a start";

    fn waiting(manager: &Manager) -> &Waiting<Self> {
        &manager.starts
    }

    async fn do_all(manager: &Manager, starts: &[&Self]) -> Result<Vec<Result<bool>>> {
        let duties: Vec<Duty> = starts.iter().map(|start| Duty::Kernel(start.kernel)).collect();
        let mut tx = manager.store.begin().await?;
        manager.fence_end(&mut tx, &duties).await?;
        let mut recorded = HashSet::new();
        for from in [KernelStatus::Preparing, KernelStatus::Restarting] {
            let of_state = starts.iter().filter(|start| start.from == from);
            let of_state: Vec<_> = of_state.map(|start| (start.kernel, &start.ports)).collect();
            recorded.extend(tx.kernels_started(&of_state, &[from]).await?);
        }
        manager.commit_end(tx, &duties).await?;
        Ok(starts
            .iter()
            .map(|start| Ok(recorded.contains(&start.kernel)))
            .collect())
    }
}

impl Manager {
    /// The creation of a kernel that was recorded by `plan`.
    pub(crate) async fn creation_of_new(&self, plan: &Plan, kernel: NewKernel) -> Result<Creation> {
        let config = self.config_for(Wanted {
            agent: Some(&kernel.agent),
            image: &plan.image.config,
            slots: &kernel.occupied_slots,
            environ: &kernel.environ,
            mounts: plan.mounts.clone(),
            idle_timeout: plan.owner.policy.idle_timeout,
        });
        Ok(Creation {
            config: config.await?,
            kernel: kernel.id,
            agent: kernel.agent,
        })
    }

    /// Creates a kernel from its record.
    pub(super) async fn create_recorded(
        self: &Arc<Self>,
        id: &AgentId,
        agent: &Arc<dyn AgentRpc>,
        row: &KernelRow,
    ) -> Result<Outcome> {
        match self.kernel_config(row).await {
            Ok(config) => {
                let creation = Creation {
                    kernel: row.id,
                    agent: id.clone(),
                    config,
                };
                self.create_on(agent, creation).await
            }
            // The image left the catalogue: trying again would not help.
            Err(Error::Internal(text)) => {
                let error = AgentError::exception("RuntimeError", text);
                self.creation_failed(agent, row.id, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Has an agent create a kernel, and records its answer.
    pub(super) async fn create_on(
        self: &Arc<Self>,
        agent: &Arc<dyn AgentRpc>,
        creation: Creation,
    ) -> Result<Outcome> {
        let Creation {
            kernel,
            agent: id,
            config,
        } = creation;
        let rpc = Arc::clone(agent);
        let answer = self.answered(CREATION_DEADLINE, async move {
            rpc.create_kernel(kernel, config).await
        });
        match answer.await {
            Ok(created) => {
                self.note_start(&id, true);
                self.record_start(kernel, KernelStatus::Preparing, created).await
            }
            Err(error) => {
                if is_agents_fault(&error) {
                    self.note_start(&id, false);
                }
                self.creation_failed(agent, kernel, error).await
            }
        }
    }

    async fn creation_failed(
        &self,
        agent: &Arc<dyn AgentRpc>,
        kernel: KernelId,
        error: AgentError,
    ) -> Result<Outcome> {
        tracing::warn!(kernel.id = %kernel, %error, "a kernel could not be created");
        // The agent may have got further than its answer says.
        match self.destroyed(agent, kernel).await {
            Ok(_) => self.record_end(kernel, CREATION_FAILED, None).await?,
            Err(error) => {
                tracing::warn!(kernel.id = %kernel, %error, "a half-created kernel could not be destroyed; it will be tried again");
                self.end_later(kernel).await?;
            }
        }
        Ok(Outcome::AgentFailed(error))
    }

    /// Notes how a start went, and says so when its agent is avoided from now on.
    fn note_start(&self, agent: &AgentId, has_succeeded: bool) {
        if let Some(time) = self.agents.note_start(agent, has_succeeded) {
            tracing::warn!(
                agent.id = %agent, ?time,
                "an agent is quarantined because its starts keep failing: for this time it gets sessions only when no other agent has room"
            );
        }
    }

    /// Records that a creation failed, and that the agent still has to be told.
    async fn end_later(&self, kernel: KernelId) -> Result<()> {
        let duties = [Duty::Kernel(kernel)];
        let mut tx = self.store.begin().await?;
        self.fence_end(&mut tx, &duties).await?;
        let (from, to) = (&[KernelStatus::Preparing], KernelStatus::Terminating);
        tx.set_kernel_status(kernel, from, to, Some(CREATION_FAILED))
            .await?;
        self.commit_end(tx, &duties).await
    }

    /// Before a creation is begun that somebody may have begun before: an agent that cannot be asked what it runs, as those
    /// of 19.06 cannot, would fail because of what is there (`agent-protocol.md` 2.2). What fails here fails there.
    pub(super) async fn clear_for_creation(&self, agent: &Arc<dyn AgentRpc>, row: &KernelRow) {
        let listed = self.listed(agent).await;
        if listed.is_err_and(|error| error.is_not_provided())
            && let Err(error) = self.destroyed(agent, row.id).await
        {
            tracing::debug!(kernel.id = %row.id, %error, "a kernel could not be cleared away before its creation");
        }
    }

    pub(super) async fn record_start(
        self: &Arc<Self>,
        kernel: KernelId,
        from: KernelStatus,
        created: KernelCreated,
    ) -> Result<Outcome> {
        let ports = KernelPorts {
            container_id: created.container_id,
            kernel_host: created.kernel_host,
            repl_in_port: created.repl_in_port,
            repl_out_port: created.repl_out_port,
            stdin_port: created.stdin_port,
            stdout_port: created.stdout_port,
            service_ports: serde_json::to_value(&created.service_ports).unwrap_or(Value::Null),
        };
        let start = Start { kernel, from, ports };
        if self.join_in(start).await? {
            self.announce(kernel, Lifecycle::Started, "");
            return Ok(Outcome::Started(created.service_ports));
        }
        // Destroyed or died while it was being made; whoever changed the record nudges the reconciler for the rest.
        self.nudge_reconcilers();
        Ok(Outcome::Overtaken(
            "the session was terminated while it was being started".to_owned(),
        ))
    }

    /// What the agent is told of a kernel, from its record alone: the same at the first attempt and after a crash.
    pub(super) async fn kernel_config(&self, row: &KernelRow) -> Result<KernelConfig> {
        let registries: Vec<String> = row.registry.iter().cloned().collect();
        let reference =
            ImageRef::parse(row.image.as_deref().unwrap_or_default(), &registries).map_err(|error| {
                Error::Internal(format!(
                    "the recorded image of kernel {} is malformed: {error}",
                    row.id
                ))
            })?;
        let image = self.image(&reference).await?.ok_or_else(|| {
            Error::Internal(format!(
                "the image of kernel {} is no longer in the catalogue",
                row.id
            ))
        })?;
        let reader = self.store.reader();
        let idle_timeout = match &row.access_key {
            Some(access_key) => reader
                .policy_of_keypair(access_key)
                .await?
                .map_or(0, |policy| policy.idle_timeout),
            None => 0,
        };
        self.config_for(Wanted {
            agent: row.agent.as_ref(),
            image: &image.config,
            slots: &row.occupied_slots,
            environ: &row.environ,
            mounts: reader.mounts_of_kernel(row.id).await?,
            idle_timeout,
        })
        .await
    }

    async fn config_for(&self, wanted: Wanted<'_>) -> Result<KernelConfig> {
        let environ = wanted.environ.iter().filter_map(|entry| entry.split_once('='));
        let (resource_slots, has_image) = self.for_agent(&wanted).await?;
        let mut image = wanted.image.clone();
        if has_image {
            // Nothing is to be fetched (Q-S4).
            (image.registry.username, image.registry.password) = (None, None);
        }
        let mounts = wanted.mounts.into_iter().map(|mount| Mount {
            name: mount.name,
            host: mount.host,
            folder: mount.id.0.simple().to_string(),
            writable: mount.permission > VFolderPermission::ReadOnly,
        });
        Ok(KernelConfig {
            image,
            resource_slots,
            idle_timeout: u64::try_from(wanted.idle_timeout).unwrap_or(0),
            mounts: mounts.collect(),
            environ: environ
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    /// The slots of a kernel without those that its agent does not have and that it wants none of, which an agent of 19.06
    /// refuses (`agent-protocol.md` 2.2), and whether the agent is known to have this very image.
    async fn for_agent(&self, wanted: &Wanted<'_>) -> Result<(ResourceSlot, bool)> {
        let mut slots = wanted.slots.clone();
        let Some(agent) = wanted.agent else {
            return Ok((slots, false));
        };
        let info = self.agents.info(agent);
        let available = match &info {
            Some(info) => Some(info.available_slots.clone()),
            None => {
                let row = self.store.reader().agent(agent).await?;
                row.map(|row| row.available_slots)
            }
        };
        if let Some(available) = available {
            slots
                .0
                .retain(|(name, amount)| *amount != SlotValue::ZERO || available.get(name).is_some());
        }
        let has_image = info.is_some_and(|info| info.has(wanted.image));
        Ok((slots, has_image))
    }
}
