//! Whether the managers take work: their common status in the configuration store, the gate that routes pass, the end
//! of all sessions at once, and what administrators have to announce (`http-api.md` 4.11, 6.1).
//!
//! Invariants: the status is everybody's, whichever manager it was told; `frozen` stays through restarts; after all
//! sessions were told to end, each of them ends, whatever happens to whoever told them.

use std::sync::Arc;
use std::time::Duration;

use bai_backplane::kv::Expect;
use bai_model::KernelStatus;
use bai_store::kernel::KernelRow;
use futures_util::{StreamExt as _, stream};

use crate::agents::AGENT_DEADLINE;
use crate::reconcile::Outcome;
use crate::session::DESTRUCTION_DEADLINE;
use crate::together::{Joint, Waiting};
use crate::{Error, Manager, Op, Result};

/// Where the status is kept.
pub(crate) const STATUS_KEY: &str = "manager/status";
/// Where the announcement is kept.
const ANNOUNCEMENT_KEY: &str = "manager/announcement";
/// When the configuration store is asked again to tell of changes.
const WATCH_RETRY: Duration = Duration::from_secs(2);
/// Sessions that are ended at the same time.
const ENDINGS_AT_ONCE: usize = 64;
/// Characters of an announcement.
const MAX_ANNOUNCEMENT: usize = 8192;

/// What the managers of a cluster are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagerStatus {
    Preparing,
    Running,
    /// Nothing new; what is there goes on.
    Frozen,
    Terminated,
}

impl ManagerStatus {
    const ALL: [Self; 4] = [Self::Preparing, Self::Running, Self::Frozen, Self::Terminated];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Terminated => "terminated",
        }
    }

    /// Whether requests of this kind may pass.
    fn check(self, gate: StatusGate) -> Result<()> {
        let required = match gate {
            StatusGate::None => return Ok(()),
            StatusGate::Running => "frozenset({<ManagerStatus.RUNNING: 'running'>})",
            StatusGate::RunningOrFrozen => {
                "frozenset({<ManagerStatus.FROZEN: 'frozen'>, <ManagerStatus.RUNNING: 'running'>})"
            }
        };
        match (self, gate) {
            (Self::Running, _) | (Self::Frozen, StatusGate::RunningOrFrozen) => Ok(()),
            (Self::Frozen, _) => Err(Error::ServerFrozen),
            _ => Err(Error::ServiceUnavailable(format!(
                "Server is not in the required status: {required}"
            ))),
        }
    }
}

impl std::str::FromStr for ManagerStatus {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidParameters`] for any other word.
    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|status| status.as_str() == text);
        named.ok_or_else(|| Error::invalid(format!("'{text}' is not a valid ManagerStatus")))
    }
}

/// What an endpoint demands of the manager's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusGate {
    /// Any status.
    None,
    /// `running` only.
    Running,
    /// `running` or `frozen`.
    RunningOrFrozen,
}

/// What the managers are doing, and with how many sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusReport {
    pub status: ManagerStatus,
    /// Sessions that have not ended.
    pub active_sessions: i64,
}

/// The question how many sessions there are. Anybody may ask, without a keypair and as often as they like.
#[derive(Debug)]
pub(crate) struct SessionCount;

impl Joint for SessionCount {
    type Outcome = i64;

    const NAME: &str = "counting sessions";

    fn waiting(manager: &Manager) -> &Waiting<Self> {
        &manager.session_counts
    }

    /// Where it cannot be told, all hear so at once: to ask again for each would have them wait for each other.
    async fn do_all(manager: &Manager, all: &[&Self]) -> Result<Vec<Result<i64>>> {
        let counted = manager.store.reader().count_live_sessions_total().await;
        Ok(vec![counted.map_err(Error::from); all.len()])
    }
}

impl Manager {
    /// What the managers are doing. For everybody.
    ///
    /// # Errors
    /// When the database or the configuration store cannot tell.
    pub async fn manager_status(self: &Arc<Self>, _op: &Op) -> Result<StatusReport> {
        Ok(StatusReport {
            status: self.status_now().await?,
            active_sessions: self.join_in(SessionCount).await?,
        })
    }

    /// Sets the status for all managers. With `force_kill` all sessions end: that is recorded for each of them before
    /// anything is waited for, and the reconcilers see to those that do not end within a minute. For superadmins.
    ///
    /// The status comes first, and the end of all sessions is counted with it, so that no session begins behind the back of
    /// their ending, at whichever manager ([`Manager::admit_session`]). The work goes on when the caller goes away.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn manager_set_status(
        self: &Arc<Self>,
        op: &Op,
        status: ManagerStatus,
        force_kill: bool,
    ) -> Result<()> {
        op.superadmin()?;
        let (manager, request_id) = (Arc::clone(self), op.request_id.clone());
        let work = self.tasks.spawn(async move {
            manager.config.put(STATUS_KEY, status.as_str()).await?;
            manager.forget_status();
            tracing::info!(request.id = %request_id, status = status.as_str(), force_kill, "the managers' status was set");
            if !force_kill {
                return Ok(());
            }
            match tokio::time::timeout(DESTRUCTION_DEADLINE, manager.end_all_sessions()).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::warn!("not all sessions ended in time; the reconcilers go on with them");
                    Ok(())
                }
            }
        });
        work.await
            .map_err(|error| Error::Internal(format!("setting the status broke off: {error}")))?
    }

    /// Ends sessions until there are none.
    async fn end_all_sessions(self: &Arc<Self>) -> Result<()> {
        let alive: Vec<_> = KernelStatus::ALL
            .into_iter()
            .filter(|status| status.is_alive())
            .collect();
        let may_end: Vec<_> = KernelStatus::ALL
            .into_iter()
            .filter(|status| status.may_become(KernelStatus::Terminating))
            .collect();
        loop {
            let mut tx = self.store.begin().await?;
            tx.lock_placement().await?;
            tx.count_session_ending().await?;
            tx.set_all_kernel_status(&may_end, KernelStatus::Terminating)
                .await?;
            tx.commit().await?;
            let kernels = self.store.reader().kernels_with_status(&alive).await?;
            if kernels.is_empty() {
                self.reset_agents().await;
                return Ok(());
            }
            let ends: Vec<bool> = stream::iter(kernels)
                .map(|kernel| self.end_kernel(kernel))
                .buffer_unordered(ENDINGS_AT_ONCE)
                .collect()
                .await;
            if !ends.into_iter().all(|has_ended| has_ended) {
                self.reset_agents().await;
                return Ok(());
            }
        }
    }

    /// Has every agent end what it still runs: what no record tells of, and what it did not end when it was told to
    /// (`agent-protocol.md` 2.10, Q-04).
    async fn reset_agents(&self) {
        stream::iter(self.agents.reachable())
            .for_each_concurrent(ENDINGS_AT_ONCE, |id| async move {
                let Ok(Some(agent)) = self.agent(&id).await else {
                    return;
                };
                let reset = self.answered(AGENT_DEADLINE, async move { agent.reset_agent().await });
                if let Err(error) = reset.await {
                    tracing::warn!(agent.id = %id, %error, "an agent could not be reset");
                }
            })
            .await;
    }

    /// Carries out the end of a kernel that is recorded as `TERMINATING`; says whether it has ended.
    async fn end_kernel(self: &Arc<Self>, kernel: KernelRow) -> bool {
        let agent = kernel.agent.as_ref();
        let is_connected = agent.is_some_and(|agent| self.agents.is_reachable(agent));
        let ended = async {
            if !is_connected && self.ended_with_its_agent(&kernel).await? {
                return Ok(());
            }
            match self.carry_out(kernel.id).await {
                Outcome::Started(_) | Outcome::Done(_) | Outcome::Elsewhere => Ok(()),
                Outcome::AgentFailed(error) => Err(Error::KernelDestructionFailed(error)),
                Outcome::Away(text) => Err(Error::ServiceUnavailable(text)),
                Outcome::Overtaken(text) => Err(Error::Internal(text)),
            }
        };
        let ended: Result<()> = ended.await;
        if let Err(error) = &ended {
            tracing::warn!(kernel.id = %kernel.id, %error, "a session could not be ended; the reconcilers try again");
        }
        ended.is_ok()
    }

    /// Whether requests of this kind may pass now (`http-api.md` 6.1).
    ///
    /// # Errors
    /// [`Error::ServerFrozen`] or [`Error::ServiceUnavailable`].
    pub async fn check_status(&self, gate: StatusGate) -> Result<()> {
        if gate == StatusGate::None {
            return Ok(());
        }
        self.status_now().await?.check(gate)
    }

    /// Whether a session may begin. It may be recorded while [`bai_store::Reader::session_endings`] is what is answered
    /// here; once that has changed, this is to be asked again, after the status was forgotten.
    ///
    /// # Errors
    /// As [`Manager::check_status`].
    pub(crate) async fn admit_session(&self) -> Result<i64> {
        let reading = match self.admission.get(self.clock.now()) {
            Ok(endings) => return Ok(endings),
            Err(reading) => reading,
        };
        // Before the status, which is set before sessions are ended.
        let endings = self.store.reader().session_endings().await?;
        self.read_status().await?.check(StatusGate::Running)?;
        self.admission.put(reading, endings);
        Ok(endings)
    }

    /// The status or what depends on it may have changed.
    pub(crate) fn forget_status(&self) {
        self.status.forget();
        self.admission.forget();
    }

    async fn status_now(&self) -> Result<ManagerStatus> {
        let reading = match self.status.get(self.clock.now()) {
            Ok(status) => return Ok(status),
            Err(reading) => reading,
        };
        let status = self.read_status().await?;
        self.status.put(reading, status);
        Ok(status)
    }

    /// The status as it is. A missing one means `running`.
    async fn read_status(&self) -> Result<ManagerStatus> {
        let text = self.config.get(STATUS_KEY).await?;
        let text = text.as_deref().unwrap_or(ManagerStatus::Running.as_str());
        text.parse().map_err(|_| {
            Error::ServiceUnavailable(format!(
                "{STATUS_KEY} in the configuration store is '{text}', which is no status; a superadmin can set it"
            ))
        })
    }

    /// At start: `frozen` stays, as whoever froze the cluster left it. Everything else becomes `running`: an original
    /// manager leaves `preparing` or `terminated` behind, as it happens to stop.
    pub(crate) async fn take_up_status(&self) -> Result<()> {
        let kept = [ManagerStatus::Running.as_str(), ManagerStatus::Frozen.as_str()];
        let found = self.config.get(STATUS_KEY).await?;
        if found.as_deref() == Some(ManagerStatus::Frozen.as_str()) {
            tracing::warn!("the site is frozen and stays so: PUT /manager/status makes it run again");
        }
        if found.as_deref().is_some_and(|found| kept.contains(&found)) {
            return Ok(());
        }
        let expected = found.map_or(Expect::Absent, Expect::Value);
        // If it was overtaken, somebody has just decided what the status is.
        self.config
            .compare_and_put(STATUS_KEY, expected, ManagerStatus::Running.as_str())
            .await?;
        Ok(())
    }

    /// Forgets the known status as soon as anybody sets another one.
    pub(crate) async fn follow_status(self: Arc<Self>) {
        let follow = async {
            loop {
                match self.config.watch(STATUS_KEY, None).await {
                    Ok(mut changes) => {
                        // What changed before the watch began is not told.
                        self.forget_status();
                        while changes.next().await.is_some() {
                            self.forget_status();
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "changes of the managers' status are not told at once")
                    }
                }
                tokio::time::sleep(WATCH_RETRY).await;
            }
        };
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = follow => {}
        }
    }

    /// What administrators have to say to everybody, if anything (`clients.md` 11.3, item 8).
    ///
    /// # Errors
    /// When the configuration store cannot tell.
    pub async fn manager_announcement(&self, _op: &Op) -> Result<Option<String>> {
        Ok(self.config.get(ANNOUNCEMENT_KEY).await?)
    }

    /// Announces something, or nothing any more. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::InvalidParameters`] for an empty or long text.
    pub async fn manager_announce(&self, op: &Op, message: Option<&str>) -> Result<()> {
        op.superadmin()?;
        match message {
            None => {
                self.config.delete(ANNOUNCEMENT_KEY).await?;
            }
            Some("") => {
                return Err(Error::invalid(
                    "message is missing or empty; say what to announce, or set enabled to false",
                ));
            }
            Some(message) if message.chars().count() > MAX_ANNOUNCEMENT => {
                return Err(Error::invalid(format!(
                    "message must have at most {MAX_ANNOUNCEMENT} characters"
                )));
            }
            Some(message) => self.config.put(ANNOUNCEMENT_KEY, message).await?,
        }
        Ok(())
    }
}
