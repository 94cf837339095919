//! What makes the world agree with the records: creation, termination and restart of kernels, carried out from the
//! state column, by whoever comes first and again after a crash.
//!
//! A request records what shall be (`PREPARING`, `TERMINATING`, `RESTARTING`), starts the work for that kernel and
//! waits for its outcome; the work belongs to the manager, not to the request. [`Manager::reconcile`], on a timer and
//! when nudged, starts the same work for every record that has none, and compares what each agent runs with what the
//! records say it should run.
//!
//! Invariants: at most one piece of work per kernel in this process, and by its claim ([`crate::cluster`]) at most one of
//! all managers; every step may be repeated (agents answer a second
//! creation of a running kernel with the first answer, and destroying an unknown kernel succeeds); every transition is
//! guarded by the states it may start from, so that a late outcome cannot revive a dead kernel.

mod start;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bai_model::{KernelId, KernelStatus};
use bai_proto::agent::{AgentError, AgentRpc, ServicePort};
use bai_store::kernel::KernelRow;
use serde_json::Value;
use tokio::sync::watch;

pub(crate) use self::start::{Creation, Start};
use crate::agents::AGENT_DEADLINE;
use crate::cluster::Duty;
use crate::lifecycle::Lifecycle;
use crate::{Error, Manager, Result};

/// `status_info` of a session that never ran.
const CREATION_FAILED: &str = "creation-failed";
/// How long a kernel may take to start. Pulling an image is part of it.
const CREATION_DEADLINE: Duration = Duration::from_secs(3600);

/// How long a request waits for what another manager does with its kernel, unless that is a creation.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(45);
/// Pauses between looks at what another manager does.
const FOLLOW_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How long work waits for a service that is away before it is left to the reconciler, and between attempts.
const AWAY_PATIENCE: Duration = Duration::from_secs(15);
const AWAY_PAUSE: Duration = Duration::from_millis(300);

/// What to do with a kernel that another manager is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfClaimed {
    /// Wait for the outcome there: somebody wants to know.
    Follow,
    /// Leave it to them.
    Leave,
}

/// How a piece of work ended. `Done` carries the statistics of a terminated kernel.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The kernel runs, with these services.
    Started(Vec<ServicePort>),
    Done(Option<Value>),
    AgentFailed(AgentError),
    /// Another manager is at it.
    Elsewhere,
    /// A service of the site stayed away, which the text names. The record stands, and is carried out when it is back.
    Away(String),
    /// The record changed under the work, or the work could not be recorded.
    Overtaken(String),
}

/// The work that is going on, by kernel.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<KernelId, watch::Receiver<Option<Outcome>>>>);

impl InFlight {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<KernelId, watch::Receiver<Option<Outcome>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn contains(&self, kernel: KernelId) -> bool {
        self.lock().contains_key(&kernel)
    }

    pub(crate) fn receiver(&self, kernel: KernelId) -> Option<watch::Receiver<Option<Outcome>>> {
        self.lock().get(&kernel).cloned()
    }
}

/// Work that is known to be going on until this is dropped, by a panic too: else nobody would ever try again.
struct Registered<'a> {
    in_flight: &'a InFlight,
    kernel: KernelId,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.kernel);
    }
}

impl Manager {
    /// Carries out what the kernel's record asks for and waits for the outcome. Work that is already going on is waited
    /// for first: it may have been started for an earlier state.
    pub(crate) async fn carry_out(self: &Arc<Self>, kernel: KernelId) -> Outcome {
        loop {
            let (receiver, is_ours) = self.start_work(kernel, None, IfClaimed::Follow);
            let outcome = wait_for(receiver).await;
            if is_ours {
                return outcome;
            }
        }
    }

    /// The same for a kernel that was recorded a moment ago: whatever is going on for it was started for that record,
    /// so that its outcome is the wanted one, whoever started it.
    pub(crate) async fn carry_out_first(self: &Arc<Self>, creation: Creation) -> Outcome {
        let kernel = creation.kernel;
        let (receiver, is_ours) = self.start_work(kernel, Some(creation), IfClaimed::Follow);
        let outcome = wait_for(receiver).await;
        match outcome {
            Outcome::Elsewhere if !is_ours => self.carry_out(kernel).await,
            outcome => outcome,
        }
    }

    /// Starts the work for a kernel unless it is going on; if its creation is given, with that. The second value says whether
    /// it was started here.
    fn start_work(
        self: &Arc<Self>,
        kernel: KernelId,
        creation: Option<Creation>,
        if_claimed: IfClaimed,
    ) -> (watch::Receiver<Option<Outcome>>, bool) {
        let mut in_flight = self.in_flight.lock();
        if let Some(receiver) = in_flight.get(&kernel) {
            return (receiver.clone(), false);
        }
        let (sender, receiver) = watch::channel(None);
        in_flight.insert(kernel, receiver.clone());
        drop(in_flight);
        let manager = Arc::clone(self);
        self.tasks.spawn(async move {
            let registered = Registered {
                in_flight: &manager.in_flight,
                kernel,
            };
            let outcome =
                manager
                    .work(kernel, creation, if_claimed)
                    .await
                    .unwrap_or_else(|error| match error {
                        Error::ServiceUnavailable(text) => Outcome::Away(text),
                        error => Outcome::Overtaken(error.to_string()),
                    });
            drop(registered);
            // Nobody waiting is fine: the record holds the result.
            _ = sender.send(Some(outcome));
        });
        (receiver, true)
    }

    async fn work(
        self: &Arc<Self>,
        kernel: KernelId,
        creation: Option<Creation>,
        if_claimed: IfClaimed,
    ) -> Result<Outcome> {
        let duty = Duty::Kernel(kernel);
        if !self.claim(&duty).await? {
            return match if_claimed {
                IfClaimed::Leave => Ok(Outcome::Elsewhere),
                IfClaimed::Follow => self.follow(kernel).await,
            };
        }
        let outcome = self.work_with_patience(kernel, creation, if_claimed).await;
        let was_lost = outcome.is_err() && !self.has_claimed(&duty).await.unwrap_or(true);
        self.give_back(kernel).await;
        match outcome {
            // This manager was believed dead; what the other one makes of it counts.
            Err(_) if was_lost && if_claimed == IfClaimed::Follow => self.follow(kernel).await,
            Ok(Outcome::Elsewhere) => {
                self.call_others().await;
                match if_claimed {
                    IfClaimed::Leave => Ok(Outcome::Elsewhere),
                    IfClaimed::Follow => self.follow(kernel).await,
                }
            }
            outcome => outcome,
        }
    }

    /// Does the work, again while a service that it needs is away: every step may be repeated.
    async fn work_with_patience(
        self: &Arc<Self>,
        kernel: KernelId,
        mut creation: Option<Creation>,
        if_claimed: IfClaimed,
    ) -> Result<Outcome> {
        let started = tokio::time::Instant::now();
        loop {
            let outcome = match creation.take() {
                Some(creation) => self.work_with_new(creation, if_claimed).await,
                None => self.work_claimed(kernel, if_claimed).await,
            };
            let is_away = matches!(outcome, Err(Error::ServiceUnavailable(_)));
            if !is_away || started.elapsed() > AWAY_PATIENCE || self.stopping.is_cancelled() {
                return outcome;
            }
            tokio::time::sleep(AWAY_PAUSE).await;
            // It may be another manager's by now.
            if !self.has_claimed(&Duty::Kernel(kernel)).await.unwrap_or(true) {
                return outcome;
            }
        }
    }

    /// Creates a kernel without a look at its record, which was written a moment ago. Should it have changed since, the start
    /// is not recorded.
    async fn work_with_new(self: &Arc<Self>, creation: Creation, if_claimed: IfClaimed) -> Result<Outcome> {
        match self.agent(&creation.agent).await? {
            Some(agent) => self.create_on(&agent, creation).await,
            None => self.work_claimed(creation.kernel, if_claimed).await,
        }
    }

    async fn work_claimed(self: &Arc<Self>, kernel: KernelId, if_claimed: IfClaimed) -> Result<Outcome> {
        let Some(row) = self.store.reader().kernel(kernel).await? else {
            return Ok(Outcome::Overtaken("the kernel is not recorded".to_owned()));
        };
        let agent = match &row.agent {
            Some(id) => self.agent(id).await?.map(|agent| (id, agent)),
            None => None,
        };
        let Some((id, agent)) = agent else {
            // Only a request comes here for an agent that has just gone; what it recorded must not outlive its answer.
            if row.status == Some(KernelStatus::Preparing) {
                self.record_end(kernel, CREATION_FAILED, None).await?;
            } else if !self.cluster.is_alone() {
                return Ok(Outcome::Elsewhere);
            }
            return Ok(Outcome::AgentFailed(AgentError::exception(
                "ConnectionError",
                "the agent is not connected",
            )));
        };
        match row.status {
            Some(KernelStatus::Preparing) => {
                if if_claimed == IfClaimed::Leave {
                    self.clear_for_creation(&agent, &row).await;
                }
                self.create_recorded(id, &agent, &row).await
            }
            Some(KernelStatus::Restarting) => self.restart_on(&agent, &row).await,
            Some(KernelStatus::Terminating) => self.destroy_on(&agent, &row).await,
            _ => Ok(Outcome::Done(None)),
        }
    }

    /// Waits for what another manager makes of a kernel.
    async fn follow(&self, kernel: KernelId) -> Result<Outcome> {
        let mut pause = FOLLOW_PAUSE.0;
        let started = tokio::time::Instant::now();
        loop {
            let Some(row) = self.store.reader().kernel(kernel).await? else {
                return Ok(Outcome::Overtaken("the kernel is not recorded".to_owned()));
            };
            let deadline = match row.status {
                Some(KernelStatus::Preparing) => CREATION_DEADLINE,
                Some(KernelStatus::Restarting | KernelStatus::Terminating) => FOLLOW_DEADLINE,
                Some(KernelStatus::Error) => {
                    let info = row.status_info.unwrap_or_default();
                    return Ok(Outcome::AgentFailed(AgentError::exception("RuntimeError", info)));
                }
                _ => return Ok(Outcome::Done(row.last_stat)),
            };
            if started.elapsed() > deadline {
                return Ok(Outcome::AgentFailed(AgentError::Timeout));
            }
            tokio::select! {
                () = self.stopping.cancelled() => {
                    return Ok(Outcome::Overtaken("the manager is stopping".to_owned()));
                }
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(FOLLOW_PAUSE.1),
            }
        }
    }

    async fn restart_on(self: &Arc<Self>, agent: &Arc<dyn AgentRpc>, row: &KernelRow) -> Result<Outcome> {
        let (rpc, kernel) = (Arc::clone(agent), row.id);
        let (answer, other) = match self.kernel_config(row).await {
            Ok(config) => {
                let answer =
                    self.answered(
                        AGENT_DEADLINE,
                        async move { rpc.restart_kernel(kernel, config).await },
                    );
                (answer.await, "Agent error")
            }
            Err(Error::Internal(text)) => (Err(AgentError::exception("RuntimeError", text)), "Other error"),
            Err(error) => return Err(error),
        };
        match answer {
            Ok(created) => self.record_start(row.id, KernelStatus::Restarting, created).await,
            Err(error) => {
                let info = match error {
                    AgentError::Timeout => "Operation timeout (restart_session)",
                    AgentError::Exception { .. } => other,
                };
                let duties = [Duty::Kernel(row.id)];
                let mut tx = self.store.begin().await?;
                self.fence_end(&mut tx, &duties).await?;
                tx.set_kernel_status(
                    row.id,
                    &[KernelStatus::Restarting],
                    KernelStatus::Error,
                    Some(info),
                )
                .await?;
                self.commit_end(tx, &duties).await?;
                self.announce(row.id, Lifecycle::Failed, info);
                Ok(Outcome::AgentFailed(error))
            }
        }
    }

    async fn destroy_on(&self, agent: &Arc<dyn AgentRpc>, row: &KernelRow) -> Result<Outcome> {
        match self.destroyed(agent, row.id).await {
            Ok(stats) => {
                let reason = match row.status_info.as_deref() {
                    Some(CREATION_FAILED) => CREATION_FAILED,
                    _ => "user-requested",
                };
                let stats = self.last_statistics(row.id, stats).await;
                self.record_end(row.id, reason, stats.clone()).await?;
                // The agent's own event may have come first, with the statistics.
                let stats = match stats {
                    Some(stats) => Some(stats),
                    None => self
                        .store
                        .reader()
                        .kernel(row.id)
                        .await?
                        .and_then(|row| row.last_stat),
                };
                Ok(Outcome::Done(stats))
            }
            // The record stays TERMINATING, so that the reconciler tries again.
            Err(error) => Ok(Outcome::AgentFailed(error)),
        }
    }

    pub(crate) async fn destroyed(
        &self,
        agent: &Arc<dyn AgentRpc>,
        kernel: KernelId,
    ) -> std::result::Result<Option<Value>, AgentError> {
        let rpc = Arc::clone(agent);
        self.answered(AGENT_DEADLINE, async move { rpc.destroy_kernel(kernel).await })
            .await
    }

    /// Waits for an agent's answer until the deadline. The call itself goes on after that: an agent in this process
    /// must not be left halfway.
    pub(crate) async fn answered<T: Send + 'static>(
        &self,
        deadline: Duration,
        call: impl Future<Output = std::result::Result<T, AgentError>> + Send + 'static,
    ) -> std::result::Result<T, AgentError> {
        match tokio::time::timeout(deadline, self.tasks.spawn(call)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AgentError::exception(
                "RuntimeError",
                "the agent's call broke off",
            )),
            Err(_) => Err(AgentError::Timeout),
        }
    }

    /// Records that a kernel ended, if the work with it is still this manager's.
    pub(crate) async fn record_end(
        &self,
        kernel: KernelId,
        reason: &str,
        stats: Option<Value>,
    ) -> Result<()> {
        let duties = [Duty::Kernel(kernel)];
        let mut tx = self.store.begin().await?;
        self.fence_end(&mut tx, &duties).await?;
        let has_ended = tx
            .terminate_kernel(kernel, reason, self.clock.now(), stats)
            .await?;
        self.commit_end(tx, &duties).await?;
        if has_ended {
            self.announce(kernel, Lifecycle::Terminated, reason);
        }
        Ok(())
    }

    /// Starts what is recorded and not going on, and compares records and agents where that is due. Takes no input and may
    /// run at any time.
    pub(crate) async fn reconcile(self: &Arc<Self>) -> Result<()> {
        let between = self.store.reader().kernels_with_status(BETWEEN).await?;
        for row in between {
            let agent = row.agent.as_ref();
            if agent.is_some_and(|agent| self.agents.is_reachable(agent)) {
                self.start_work(row.id, None, IfClaimed::Leave);
            }
        }
        self.compare_agents().await
    }
}

/// The states of kernels with which something is to be done.
const BETWEEN: &[KernelStatus] = &[
    KernelStatus::Preparing,
    KernelStatus::Restarting,
    KernelStatus::Terminating,
];

pub(crate) async fn wait_for(mut receiver: watch::Receiver<Option<Outcome>>) -> Outcome {
    match receiver.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Outcome::Done(None)),
        Err(_) => Outcome::Overtaken("the manager is stopping".to_owned()),
    }
}
