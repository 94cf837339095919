//! Compute sessions as their owners see them (`http-api.md` 4.8): create, look at, run code in, restart, destroy.
//!
//! Invariants: a session is found only by its name and its owner's access key; whoever acts for another owner is an
//! administrator ([`Op::owner`]).
//!
//! Not here: how kernels are made and unmade, which is [`crate::reconcile`]'s.

mod create;
mod placement;
mod record;
mod resources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bai_model::time::rest_timestamp;
use bai_model::{AccessKey, KernelStatus, RunId, SessionName, SlotValue};
use bai_proto::agent::{AgentError, AgentRpc, ExecuteRequest};
pub use bai_proto::agent::{
    BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, FileListing, GeneratedFile, RunStatus, ServicePort,
};
use bai_store::kernel::KernelRow;
use bytes::Bytes;
use serde_json::{Map, Value, json};

pub(crate) use self::create::{NameSearch, Project, ProjectKey};
pub(crate) use self::record::{LastPlacement, Plan};
use crate::agents::AGENT_DEADLINE;
use crate::lifecycle::Lifecycle;
use crate::reconcile::Outcome;
use crate::{Error, Manager, Op, Result};

/// Which session is meant: a name, and whose (`http-api.md` 1.14). `owner: None` means the requester's own.
#[derive(Clone, Debug)]
pub struct SessionRef {
    pub name: String,
    pub owner: Option<AccessKey>,
}

/// A request for a session (`http-api.md` 4.8.1), already checked in form.
#[derive(Clone, Debug)]
pub struct SessionCreate {
    pub name: SessionName,
    /// Image reference or alias, as given.
    pub image: String,
    pub group: String,
    pub domain: String,
    pub tag: Option<String>,
    pub owner: Option<AccessKey>,
    /// Names of folders to mount.
    pub mounts: Vec<String>,
    pub environ: BTreeMap<String, String>,
    pub resources: RequestedResources,
    /// False refuses an existing session of this name instead of returning it.
    pub reuse_if_exists: bool,
}

/// How the requester states what the session needs.
#[derive(Clone, Debug)]
pub enum RequestedResources {
    /// The `resources` object, slot by slot, as JSON.
    Slots(Map<String, Value>),
    /// `instanceMemory` (GiB), `instanceCores`, and whether GPUs or TPUs were asked for.
    Legacy {
        memory: Option<Value>,
        cores: Option<Value>,
        gpus: bool,
        tpus: bool,
    },
}

#[derive(Clone, Debug)]
pub struct SessionCreated {
    pub name: SessionName,
    /// `None` while the session is still being created.
    pub service_ports: Option<Vec<ServicePort>>,
    pub created: bool,
    pub status: KernelStatus,
}

/// A request to run code (`http-api.md` 4.8.5).
#[derive(Clone, Debug)]
pub struct SessionExecute {
    pub run_id: Option<RunId>,
    pub mode: ExecuteMode,
    pub code: String,
    pub batch: BatchOptions,
    pub flush_timeout: Option<Duration>,
}

impl From<SessionExecute> for ExecuteRequest {
    fn from(request: SessionExecute) -> Self {
        Self {
            run_id: request.run_id,
            mode: request.mode,
            code: request.code,
            batch: request.batch,
            flush_timeout: request.flush_timeout,
        }
    }
}

/// How long one file may take (`agent-protocol.md` 1.8).
const FILE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a termination is waited for, with what must end before it.
pub(crate) const DESTRUCTION_DEADLINE: Duration = Duration::from_secs(60);
/// How long the completion of a name may take.
const COMPLETION_DEADLINE: Duration = Duration::from_secs(10);

impl Manager {
    /// The object of `http-api.md` 4.8.2 with the members of Q-19.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`].
    pub async fn session_info(&self, op: &Op, session: &SessionRef) -> Result<Value> {
        let row = self.session_in_use(op, session).await?;
        let age = row
            .created_at
            .map_or(0, |at| op.now.signed_duration_since(at).num_milliseconds());
        let stat = |metric: &str| {
            row.last_stat
                .as_ref()
                .and_then(|stat| stat[metric]["current"].as_str())
                .map(str::to_owned)
        };
        let cpu_used = stat("cpu_used")
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
        let memory_limit = match row.occupied_slots.amount("mem") {
            SlotValue::Finite(bytes) => (bytes / rust_decimal::Decimal::from(1024))
                .trunc()
                .to_string()
                .parse::<u64>()
                .ok(),
            _ => None,
        };
        Ok(json!({
            "domainName": row.domain_name,
            "groupId": row.group_id.to_string(),
            "userId": row.user_uuid.to_string(),
            "lang": row.image,
            "image": row.image,
            "registry": row.registry,
            "tag": row.tag,
            "containerId": row.container_id,
            "occupiedSlots": row.occupied_slots.to_json(),
            "occupiedShares": row.occupied_shares,
            "environ": row.environ,
            "status": row.status.map(KernelStatus::as_str),
            "statusInfo": row.status_info,
            "age": age,
            "creationTime": row.created_at.map(rest_timestamp),
            "terminationTime": row.terminated_at.map(rest_timestamp),
            "numQueriesExecuted": row.num_queries.unwrap_or(0),
            "lastStat": row.last_stat,
            "queryTimeout": -1,
            "idleTimeout": -1,
            "maxCpuCredit": -1,
            "idle": -1,
            "memoryUsed": -1,
            "memoryLimit": memory_limit,
            "cpuCreditUsed": cpu_used,
        }))
    }

    /// Replaces the session's processes by fresh ones; files stay.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelRestartFailed`] (the session is in `ERROR` then).
    pub async fn session_restart(self: &Arc<Self>, op: &Op, session: &SessionRef) -> Result<()> {
        let row = self.session_in_use(op, session).await?;
        // A restart that is going on is joined.
        let from: Vec<KernelStatus> = KernelStatus::ALL
            .into_iter()
            .filter(|status| {
                status.may_become(KernelStatus::Restarting) || *status == KernelStatus::Restarting
            })
            .collect();
        let mut tx = self.store.begin().await?;
        let is_recorded = tx
            .set_kernel_status(row.id, &from, KernelStatus::Restarting, None)
            .await?;
        tx.commit().await?;
        if !is_recorded {
            return Err(Error::KernelRestartFailed(AgentError::exception(
                "RuntimeError",
                "the session is not running",
            )));
        }
        self.announce(row.id, Lifecycle::Restarting, "");
        match self.carry_out(row.id).await {
            Outcome::Started(_) | Outcome::Done(_) | Outcome::Elsewhere => Ok(()),
            Outcome::AgentFailed(error) => Err(Error::KernelRestartFailed(error)),
            Outcome::Away(text) => Err(Error::ServiceUnavailable(text)),
            Outcome::Overtaken(text) => Err(Error::KernelRestartFailed(AgentError::exception(
                "RuntimeError",
                text,
            ))),
        }
    }

    /// Ends a session and returns its last statistics. The session is gone when this returns; if its agent fails, it
    /// stays `TERMINATING` and is tried again until it is gone.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelDestructionFailed`].
    pub async fn session_destroy(self: &Arc<Self>, op: &Op, session: &SessionRef) -> Result<Option<Value>> {
        let row = self.find_session(op, session).await?;
        self.terminate(&row).await
    }

    /// Records that a kernel shall end, and carries it out.
    async fn terminate(self: &Arc<Self>, row: &KernelRow) -> Result<Option<Value>> {
        let from: Vec<KernelStatus> = KernelStatus::ALL
            .into_iter()
            .filter(|status| status.may_become(KernelStatus::Terminating))
            .collect();
        let mut tx = self.store.begin().await?;
        // False means that somebody else is at it; their outcome is ours.
        let is_news = tx
            .set_kernel_status(row.id, &from, KernelStatus::Terminating, None)
            .await?;
        tx.commit().await?;
        if is_news {
            self.announce(row.id, Lifecycle::Terminating, "user-requested");
        }
        match tokio::time::timeout(DESTRUCTION_DEADLINE, self.carry_out(row.id)).await {
            Ok(Outcome::Done(stats)) => Ok(stats),
            Ok(Outcome::Started(_) | Outcome::Elsewhere) => Ok(None),
            Ok(Outcome::Away(text)) => Err(Error::ServiceUnavailable(text)),
            Ok(Outcome::AgentFailed(error)) => Err(Error::KernelDestructionFailed(error)),
            Ok(Outcome::Overtaken(text)) => Err(Error::Internal(text)),
            // The image is still being pulled, for example. The record stands, and the reconciler follows it.
            Err(_) => Err(Error::KernelDestructionFailed(AgentError::Timeout)),
        }
    }

    /// Starts, feeds or polls a run (`http-api.md` 4.8.5). `None` when the session went away while the call waited.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_execute(
        &self,
        op: &Op,
        session: &SessionRef,
        request: SessionExecute,
    ) -> Result<Option<ExecuteReply>> {
        let row = self.session_in_use(op, session).await?;
        can_execute(&row)?;
        let agent = self.agent_of(&row).await?;
        within(AGENT_DEADLINE, agent.execute(row.id, request.into())).await
    }

    /// Interrupts what the session runs.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_interrupt(&self, op: &Op, session: &SessionRef) -> Result<()> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        within(AGENT_DEADLINE, agent.interrupt_kernel(row.id)).await
    }

    /// Names that could continue `code`.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_complete(
        &self,
        op: &Op,
        session: &SessionRef,
        code: String,
        options: Value,
    ) -> Result<Vec<String>> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        within(COMPLETION_DEADLINE, agent.get_completions(row.id, code, options)).await
    }

    /// What the session's programs printed.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_logs(&self, op: &Op, session: &SessionRef) -> Result<String> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        within(AGENT_DEADLINE, agent.get_logs(row.id)).await
    }

    /// A directory below `/home/work`.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::InvalidParameters`], [`Error::KernelExecutionFailed`].
    pub async fn session_files(&self, op: &Op, session: &SessionRef, path: &str) -> Result<FileListing> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        // An agent of 19.06 would run it as a program (agent's Q-S5).
        let is_program = |c: char| c.is_control() || matches!(c, '\'' | '"' | '\\');
        if path.contains(is_program) && self.is_original(&agent).await {
            return Err(Error::invalid(
                "path must have no quotes, backslashes or control characters, because the agent of this session is of 19.06",
            ));
        }
        within(AGENT_DEADLINE, agent.list_files(row.id, path.to_owned())).await
    }

    /// Writes files, `(path below /home/work, bytes)`.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_upload(
        &self,
        op: &Op,
        session: &SessionRef,
        files: Vec<(String, Bytes)>,
    ) -> Result<()> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        for (path, data) in files {
            within(FILE_DEADLINE, agent.upload_file(row.id, path, data)).await?;
        }
        Ok(())
    }

    /// One tar archive for each path, in order.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::KernelExecutionFailed`].
    pub async fn session_download(
        &self,
        op: &Op,
        session: &SessionRef,
        paths: Vec<String>,
    ) -> Result<Vec<Bytes>> {
        let row = self.session_in_use(op, session).await?;
        let agent = self.agent_of(&row).await?;
        let mut archives = Vec::with_capacity(paths.len());
        for path in paths {
            archives.push(within(FILE_DEADLINE, agent.download_file(row.id, path)).await?);
        }
        Ok(archives)
    }

    /// Whether the session is still there. Counts nothing.
    ///
    /// # Errors
    /// When the database cannot tell.
    pub async fn session_exists(&self, op: &Op, session: &SessionRef) -> Result<bool> {
        match self.find_session(op, session).await {
            Ok(_) => Ok(true),
            Err(Error::KernelNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Finds a session as `agent-protocol.md` 5.3 says. What cannot be a session's name is none.
    pub(crate) async fn find_session(&self, op: &Op, session: &SessionRef) -> Result<KernelRow> {
        let owner = op.owner(session.owner.as_ref())?;
        if !owner.can_exist() || session.name.parse::<SessionName>().is_err() {
            return Err(Error::KernelNotFound);
        }
        let row = self.store.reader().session_by_name(owner, &session.name).await?;
        row.ok_or(Error::KernelNotFound)
    }

    /// Finds a session and counts one use of it.
    pub(crate) async fn session_in_use(&self, op: &Op, session: &SessionRef) -> Result<KernelRow> {
        let row = self.find_session(op, session).await?;
        self.usage
            .note_session_use(op.owner(session.owner.as_ref())?, &session.name);
        Ok(row)
    }

    /// The session's agent. One that is alive but has not connected to this manager yet will.
    pub(crate) async fn agent_of(&self, row: &KernelRow) -> Result<Arc<dyn AgentRpc>> {
        let agent = match &row.agent {
            Some(id) => self.agent(id).await?,
            None => None,
        };
        agent.ok_or_else(|| {
            Error::ServiceUnavailable(
                "the session's agent is not connected yet; try again shortly".to_owned(),
            )
        })
    }
}

/// Refuses what an agent that does not have the kernel yet would take for a sign that it has ended (agent's Q-42).
pub(crate) fn can_execute(row: &KernelRow) -> Result<()> {
    match row.status {
        Some(KernelStatus::Running | KernelStatus::Restarting) => Ok(()),
        _ => Err(Error::KernelNotFound),
    }
}

/// Waits for an agent's answer within the deadline; its errors are those of running code.
pub(crate) async fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = std::result::Result<T, AgentError>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::KernelExecutionFailed(error)),
        Err(_) => Err(Error::KernelExecutionFailed(AgentError::Timeout)),
    }
}
