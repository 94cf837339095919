//! Agents compared with the records: kernels that are recorded and gone, and kernels that are there and not recorded.
//!
//! An agent of ours says what it runs. One of 19.06 does not (`agent-protocol.md` 5.9): it can only be asked for one kernel
//! after the other, whose idle time-outs that postpones, so that it is asked only when it may have lost some, which is when
//! it is first heard, comes back, starts, or told more than could be recorded. What it runs without a record cannot be seen;
//! what was recorded as ended while it was away it is told to destroy when it is back.
//!
//! Invariants: one manager at a time compares an agent; a record changes only if it is as it was before the agent was asked.

use std::collections::HashSet;
use std::sync::Arc;

use bai_model::{AgentId, KernelId, KernelStatus};
use bai_proto::agent::{AgentError, AgentRpc};
use bai_store::kernel::KernelRow;
use futures_util::{StreamExt as _, stream};

use crate::agents::{AGENT_DEADLINE, Compared};
use crate::cluster::Duty;
use crate::{Manager, Result};

/// Kernels that one agent is asked for at the same time.
const QUESTIONS_AT_ONCE: usize = 4;
/// What an agent of 19.06 says of a kernel that it does not have (`agent-protocol.md` 2.11).
const NO_SUCH_KERNEL: &str = "KeyError";

/// What is the matter with an agent that is not connected.
const NO_CONNECTION: &str = "ConnectionError";

/// What is known of a kernel after its agent was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is among those that the agent runs.
    Listed,
    /// The agent cannot say what it runs, and answers for this one.
    Answering,
    /// The agent does not have it.
    Gone,
    /// The agent does not answer, or something else.
    Nothing,
}

impl Manager {
    /// Compares the agents of this process, and those on other hosts for which it is time.
    pub(crate) async fn compare_agents(self: &Arc<Self>) -> Result<()> {
        for (id, agent) in self.agents.local() {
            // Whoever looks for what is missing has to be the only one to act on it.
            if !self.claim(&Duty::Agent(id.clone())).await? {
                continue;
            }
            if let Err(error) = self.compare(&id, &agent).await {
                tracing::warn!(agent.id = %id, %error, "an agent could not be compared with the records");
            }
        }
        for id in self.agents.take_comparisons() {
            let manager = Arc::clone(self);
            self.tasks.spawn(async move { manager.compare_remote(&id).await });
        }
        Ok(())
    }

    /// Compares an agent on another host, which any manager may do, one at a time.
    async fn compare_remote(&self, id: &AgentId) {
        let duty = Duty::Agent(id.clone());
        let compared: Result<Compared> = async {
            let Some(agent) = self.agent(id).await? else {
                return Ok(Compared::NotAtAll);
            };
            // A site whose agents all come at once must not wait for the database in the way of everybody else.
            let turn = self.agents.turn_at_records().await;
            if !self.claim(&duty).await? {
                return Ok(Compared::NotAtAll);
            }
            drop(turn);
            let compared = self.compare(id, &agent).await;
            let _turn = self.agents.turn_at_records().await;
            self.give_back_duty(&duty).await;
            compared
        }
        .await;
        let compared = compared.unwrap_or_else(|error| {
            tracing::warn!(agent.id = %id, %error, "an agent could not be compared with the records");
            Compared::NotAtAll
        });
        self.agents.note_comparison(id, compared);
    }

    /// Ends records of kernels that an agent has lost, and kernels without a record.
    async fn compare(&self, id: &AgentId, agent: &Arc<dyn AgentRpc>) -> Result<Compared> {
        let turn = self.agents.turn_at_records().await;
        let recorded = self.store.reader().live_kernels_of_agent(id).await?;
        drop(turn);
        let running = match self.listed(agent).await {
            Ok(kernels) => kernels,
            Err(error) if error.is_not_provided() => {
                return self.compare_one_by_one(id, agent, recorded).await;
            }
            // Of all that cannot be called it is told together.
            Err(AgentError::Exception { kind, .. }) if kind == NO_CONNECTION => {
                tracing::debug!(agent.id = %id, "an agent that cannot be called is not compared with the records yet");
                return Ok(Compared::NotAtAll);
            }
            Err(error) => {
                tracing::warn!(agent.id = %id, %error, "an agent does not say what it runs");
                return Ok(Compared::NotAtAll);
            }
        };
        for row in &recorded {
            if row.status == Some(KernelStatus::Running) && !running.contains(&row.id) {
                self.confirm_lost(id, agent, row).await?;
            }
        }
        let recorded: HashSet<KernelId> = recorded.iter().map(|row| row.id).collect();
        for kernel in running.difference(&recorded) {
            self.destroy_orphan(agent, *kernel).await?;
        }
        Ok(Compared::ByList)
    }

    async fn compare_one_by_one(
        &self,
        id: &AgentId,
        agent: &Arc<dyn AgentRpc>,
        recorded: Vec<KernelRow>,
    ) -> Result<Compared> {
        let running = recorded
            .into_iter()
            .filter(|row| row.status == Some(KernelStatus::Running));
        let seen: Vec<(KernelRow, Seen)> = stream::iter(running)
            .map(|row| async {
                let seen = self.asked_for(agent, row.id).await;
                (row, seen)
            })
            .buffer_unordered(QUESTIONS_AT_ONCE)
            .collect()
            .await;
        let mut compared = Compared::OneByOne;
        for (row, seen) in seen {
            match seen {
                Seen::Gone => self.record_lost(id, &row).await?,
                Seen::Nothing => compared = Compared::NotAtAll,
                Seen::Listed | Seen::Answering => {}
            }
        }
        let turn = self.agents.turn_at_records().await;
        let left_behind = self.store.reader().kernels_left_behind(id).await?;
        drop(turn);
        for kernel in left_behind {
            self.destroy_orphan(agent, kernel).await?;
        }
        Ok(compared)
    }

    /// Whether an agent has a kernel.
    pub(crate) async fn look_for(&self, agent: &Arc<dyn AgentRpc>, kernel: KernelId) -> Seen {
        match self.listed(agent).await {
            Ok(kernels) if kernels.contains(&kernel) => Seen::Listed,
            Ok(_) => Seen::Gone,
            Err(error) if error.is_not_provided() => self.asked_for(agent, kernel).await,
            Err(_) => Seen::Nothing,
        }
    }

    /// The same of an agent that cannot say what it runs.
    async fn asked_for(&self, agent: &Arc<dyn AgentRpc>, kernel: KernelId) -> Seen {
        let rpc = Arc::clone(agent);
        let logs = self.answered(AGENT_DEADLINE, async move { rpc.get_logs(kernel).await });
        match logs.await {
            Ok(_) => Seen::Answering,
            Err(AgentError::Exception { kind, .. }) if kind == NO_SUCH_KERNEL => Seen::Gone,
            Err(_) => Seen::Nothing,
        }
    }

    /// The kernels that an agent runs.
    pub(crate) async fn listed(
        &self,
        agent: &Arc<dyn AgentRpc>,
    ) -> std::result::Result<HashSet<KernelId>, AgentError> {
        let rpc = Arc::clone(agent);
        let kernels = self
            .answered(AGENT_DEADLINE, async move { rpc.list_kernels().await })
            .await?;
        Ok(kernels.into_iter().collect())
    }

    /// Whether an agent lacks what those of 19.06 lack.
    pub(crate) async fn is_original(&self, agent: &Arc<dyn AgentRpc>) -> bool {
        self.listed(agent)
            .await
            .is_err_and(|error| error.is_not_provided())
    }

    /// A kernel that should run but was not listed: looked at once more, because it may have been restarted in between.
    async fn confirm_lost(&self, id: &AgentId, agent: &Arc<dyn AgentRpc>, row: &KernelRow) -> Result<()> {
        // An agent that does not answer says nothing of its kernels.
        let is_missing = self
            .listed(agent)
            .await
            .is_ok_and(|kernels| !kernels.contains(&row.id));
        if is_missing && !self.in_flight.contains(row.id) {
            self.record_lost(id, row).await?;
        }
        Ok(())
    }

    async fn record_lost(&self, id: &AgentId, row: &KernelRow) -> Result<()> {
        let duty = Duty::Agent(id.clone());
        if self
            .end_unless_changed(row, "lost-on-agent", None, Some(&duty))
            .await?
        {
            tracing::warn!(agent.id = %id, kernel.id = %row.id, "a session's kernel is gone from its agent");
        }
        Ok(())
    }

    /// A kernel that runs, or may run, without a live record.
    async fn destroy_orphan(&self, agent: &Arc<dyn AgentRpc>, kernel: KernelId) -> Result<()> {
        let row = self.store.reader().kernel(kernel).await?;
        if row.is_some_and(|row| row.status.is_some_and(KernelStatus::is_alive)) {
            return Ok(());
        }
        tracing::warn!(kernel.id = %kernel, "destroying a kernel that no session owns");
        if let Err(error) = self.destroyed(agent, kernel).await {
            tracing::warn!(kernel.id = %kernel, %error, "an orphan could not be destroyed; it will be tried again");
        }
        Ok(())
    }
}
