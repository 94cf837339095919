//! Kernels: sessions as rows, and the guarded transitions between their states (`data-model.md` 7.1,
//! `agent-protocol.md` 5).
//!
//! Invariants: a transition names the states it starts from and answers false when somebody else was faster; `TERMINATED`
//! is final; what a kernel occupies is counted and released in the transaction that inserts or terminates it.
//!
//! Not here: which transitions make sense (`bai_model::KernelStatus::may_become`), sums (`occupancy`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bai_model::{AccessKey, AgentId, AgentStatus, GroupId, KernelId, KernelStatus, ResourceSlot, UserId};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::driver::{Param, Row, params};
use crate::store::places;
use crate::{ConflictKind, Error, Reader, Result, Tx, catalog};

/// The index that lets one live session have a name.
const UNIQUE_NAME: &str = "ix_kernels_unique_sess_token";
/// How many kernels or agents one statement names at most.
const BATCH: usize = 100;

/// A kernel with every column.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// The key; the name that agents use.
    pub id: KernelId,
    /// The name that the client chose.
    pub sess_id: Option<String>,
    /// `master`; 19.06 makes no others.
    pub role: String,
    /// Where it runs.
    pub agent: Option<AgentId>,
    /// That agent's RPC endpoint at creation.
    pub agent_addr: String,
    /// The domain whose quota it counts against.
    pub domain_name: String,
    /// The group whose quota it counts against.
    pub group_id: GroupId,
    /// The owner.
    pub user_uuid: UserId,
    /// The owner's keypair.
    pub access_key: Option<AccessKey>,
    /// The canonical image reference.
    pub image: Option<String>,
    /// Its registry part.
    pub registry: Option<String>,
    /// The user's label.
    pub tag: Option<String>,
    /// The runtime's name for it; NULL until it ran.
    pub container_id: Option<String>,
    /// What it occupies from insertion to termination.
    pub occupied_slots: ResourceSlot,
    /// Always `{}`.
    pub occupied_shares: Value,
    /// `NAME=VALUE` each.
    pub environ: Vec<String>,
    /// Where its ports are; NULL means at its agent.
    pub kernel_host: Option<String>,
    /// 0 until it ran.
    pub repl_in_port: u16,
    /// 0 until it ran.
    pub repl_out_port: u16,
    /// 0 until it ran.
    pub stdin_port: u16,
    /// 0 until it ran.
    pub stdout_port: u16,
    /// A list of objects; NULL until it ran.
    pub service_ports: Option<Value>,
    /// When it was asked for.
    pub created_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub terminated_at: Option<DateTime<Utc>>,
    /// Its state; NULL is neither alive nor ended.
    pub status: Option<KernelStatus>,
    /// Why it is in that state, in a few words.
    pub status_info: Option<String>,
    /// Uses of the session through the API.
    pub num_queries: Option<i64>,
    /// Statistics at its end.
    pub last_stat: Option<Value>,
}

/// A kernel to be added, in the state `PREPARING`.
#[derive(Clone, Debug)]
pub struct NewKernel {
    /// The key.
    pub id: KernelId,
    /// The name that the client chose.
    pub sess_id: String,
    /// Where it shall run.
    pub agent: AgentId,
    /// That agent's RPC endpoint.
    pub agent_addr: String,
    /// The domain whose quota it counts against.
    pub domain_name: String,
    /// The group whose quota it counts against.
    pub group_id: GroupId,
    /// The owner.
    pub user_uuid: UserId,
    /// The owner's keypair.
    pub access_key: AccessKey,
    /// The canonical image reference.
    pub image: String,
    /// Its registry part.
    pub registry: String,
    /// The user's label.
    pub tag: Option<String>,
    /// What it occupies, zeros included.
    pub occupied_slots: ResourceSlot,
    /// `NAME=VALUE` each.
    pub environ: Vec<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// Why kernels cannot be added as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Kernels whose names are held by others (DM-19).
    pub taken: Vec<KernelId>,
    /// Their agents that are not alive. The others do not go before the unit of work ends.
    pub gone: Vec<AgentId>,
}

impl Obstacles {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.gone.is_empty()
    }
}

/// What is known of a kernel once it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelPorts {
    /// The runtime's name for it.
    pub container_id: String,
    /// Where its ports are; `None` means at its agent.
    pub kernel_host: Option<String>,
    /// Of the kernel protocol.
    pub repl_in_port: u16,
    /// Of the kernel protocol.
    pub repl_out_port: u16,
    /// Of the kernel protocol.
    pub stdin_port: u16,
    /// Of the kernel protocol.
    pub stdout_port: u16,
    /// A list of objects.
    pub service_ports: Value,
}

fn read(row: &Row) -> Result<KernelRow> {
    Ok(KernelRow {
        id: row.get("id")?,
        sess_id: row.opt("sess_id")?,
        role: row.get("role")?,
        agent: row.opt("agent")?,
        agent_addr: row.get("agent_addr")?,
        domain_name: row.get("domain_name")?,
        group_id: row.get("group_id")?,
        user_uuid: row.get("user_uuid")?,
        access_key: row.opt("access_key")?,
        image: row.opt("image")?,
        registry: row.opt("registry")?,
        tag: row.opt("tag")?,
        container_id: row.opt("container_id")?,
        occupied_slots: row.opt("occupied_slots")?.unwrap_or_default(),
        occupied_shares: row
            .opt("occupied_shares")?
            .unwrap_or_else(|| Value::Object(Default::default())),
        environ: row.opt("environ")?.unwrap_or_default(),
        kernel_host: row.opt("kernel_host")?,
        repl_in_port: row.get("repl_in_port")?,
        repl_out_port: row.get("repl_out_port")?,
        stdin_port: row.get("stdin_port")?,
        stdout_port: row.get("stdout_port")?,
        service_ports: row.opt("service_ports")?,
        created_at: row.opt("created_at")?,
        terminated_at: row.opt("terminated_at")?,
        status: row.opt("status")?,
        status_info: row.opt("status_info")?,
        num_queries: row.opt("num_queries")?,
        last_stat: row.opt("last_stat")?,
    })
}

macro_rules! select_kernels {
    ($rest:expr) => {
        concat!(
            "SELECT k.id, k.sess_id, k.role, k.agent, k.agent_addr, k.domain_name, k.group_id, k.user_uuid, \
             k.access_key, k.image, k.registry, k.tag, k.container_id, k.occupied_slots, k.occupied_shares, k.environ, \
             k.kernel_host, k.repl_in_port, k.repl_out_port, k.stdin_port, k.stdout_port, k.service_ports, \
             k.created_at, k.terminated_at, k.status, k.status_info, k.num_queries, k.last_stat FROM kernels k ",
            $rest
        )
    };
}

/// The states of kernels that are not terminated, as a condition that only searches among all of them use: it is that of
/// `bai_ix_kernels_live`, which therefore stays out of the searches for one of them. When the last statistics know no live
/// kernel, PostgreSQL takes any index over live ones alone for as good as the right one, and reads it from end to end
/// (`docs/adr/0020-finding-live-kernels.md`).
macro_rules! is_live {
    () => {
        "status IN ('PREPARING', 'BUILDING', 'RUNNING', 'RESTARTING', 'RESIZING', 'SUSPENDED', 'TERMINATING', 'ERROR')"
    };
}
pub(crate) use is_live;

/// The session that has the name in a row of a table `wanted`. A search for each name, because PostgreSQL could read all that
/// lives for a join (`docs/adr/0020-finding-live-kernels.md`).
macro_rules! holder_of_name {
    () => {
        "(SELECT id FROM kernels WHERE access_key = wanted.owner AND sess_id = wanted.name \
         AND role = 'master' AND status <> 'TERMINATED')"
    };
}
#[cfg(test)]
pub(crate) use holder_of_name;

/// The state as something to be looked at in a row that is found by its key, and not to be searched by.
const STATE: &str = "CAST(status AS text)";

/// `'RUNNING', 'ERROR'`: literals, because PostgreSQL takes those for an enum without asking, and names out of a closed
/// enum are safe. No states at all select nothing.
fn literals(statuses: &[KernelStatus]) -> String {
    match statuses {
        [] => "NULL".to_owned(),
        _ => statuses
            .iter()
            .map(|status| format!("'{status}'"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

impl Reader {
    /// The session of that name as the API sees it (`agent-protocol.md` 5.3): not terminated, on an agent that is alive.
    pub async fn session_by_name(&self, access_key: &AccessKey, name: &str) -> Result<Option<KernelRow>> {
        let sql = select_kernels!(
            "JOIN agents a ON a.id = k.agent WHERE k.access_key = $1 AND k.sess_id = $2 AND k.role = 'master' \
             AND k.status <> 'TERMINATED' AND a.status = 'ALIVE'"
        );
        self.first(sql, params![access_key, name], read).await
    }

    /// The kernels that hold these session names of these owners, whatever became of their agents. Names that nobody holds
    /// are missing.
    pub async fn live_kernels_by_name(
        &self,
        names: &[(&AccessKey, &str)],
    ) -> Result<HashMap<(AccessKey, String), KernelRow>> {
        let mut rows = HashMap::with_capacity(names.len());
        for batch in names.chunks(BATCH) {
            let sql = format!(
                concat!(
                    "WITH wanted (owner, name) AS (VALUES {}) ",
                    select_kernels!(concat!("JOIN wanted ON k.id = ", holder_of_name!()))
                ),
                places(batch.len(), 2)
            );
            let params = batch.iter().flat_map(|(owner, name)| params![*owner, *name]);
            for row in self.list(sql, params.collect(), read).await? {
                if let (Some(owner), Some(name)) = (&row.access_key, &row.sess_id) {
                    rows.insert((owner.clone(), name.clone()), row);
                }
            }
        }
        Ok(rows)
    }

    /// The kernel with this id, in whatever state.
    pub async fn kernel(&self, kernel: KernelId) -> Result<Option<KernelRow>> {
        self.first(select_kernels!("WHERE k.id = $1"), params![kernel], read)
            .await
    }

    /// Those of these kernels that are recorded, in whatever state and order.
    pub async fn kernels(&self, kernels: &[KernelId]) -> Result<Vec<KernelRow>> {
        let mut rows = Vec::with_capacity(kernels.len());
        for batch in kernels.chunks(BATCH) {
            let condition = format!("WHERE k.id IN {}", places(1, batch.len()));
            let params = batch.iter().map(|kernel| (*kernel).into()).collect();
            rows.extend(
                self.list(select_kernels!("").to_owned() + &condition, params, read)
                    .await?,
            );
        }
        Ok(rows)
    }

    /// The names of the sessions of these kernels, and whose they are. Rows without either are missing.
    pub async fn session_names(
        &self,
        kernels: &[KernelId],
    ) -> Result<HashMap<KernelId, (String, AccessKey)>> {
        let mut names = HashMap::with_capacity(kernels.len());
        for batch in kernels.chunks(BATCH) {
            let sql = format!(
                "SELECT id, sess_id, access_key FROM kernels WHERE id IN {} AND sess_id IS NOT NULL \
                 AND access_key IS NOT NULL",
                places(1, batch.len())
            );
            let params = batch.iter().map(|kernel| (*kernel).into()).collect();
            let read = |row: &Row| Ok((row.get("id")?, (row.get("sess_id")?, row.get("access_key")?)));
            names.extend(self.list(sql, params, read).await?);
        }
        Ok(names)
    }

    /// The kernels in one of these states, oldest first.
    pub async fn kernels_with_status(&self, statuses: &[KernelStatus]) -> Result<Vec<KernelRow>> {
        let condition = format!(
            "WHERE k.status IN ({}) ORDER BY k.created_at, k.id",
            literals(statuses)
        );
        self.list(select_kernels!("").to_owned() + &condition, params![], read)
            .await
    }

    /// The kernels of an agent that are not terminated, oldest first.
    pub async fn live_kernels_of_agent(&self, agent: &AgentId) -> Result<Vec<KernelRow>> {
        let sql = select_kernels!(concat!(
            "WHERE k.agent = $1 AND k.",
            is_live!(),
            " ORDER BY k.created_at, k.id"
        ));
        self.list(sql, params![agent], read).await
    }

    /// Kernels that were recorded as ended because their agent was away, and may run there still, the last ones first.
    pub async fn kernels_left_behind(&self, agent: &AgentId) -> Result<Vec<KernelId>> {
        let sql = format!(
            "SELECT id FROM kernels WHERE agent = $1 AND status = 'TERMINATED' AND status_info = 'agent-lost' \
             ORDER BY terminated_at DESC LIMIT {BATCH}"
        );
        self.list(sql, params![agent], |row| row.get("id")).await
    }
}

impl Tx {
    /// As [`Tx::insert_kernels`], of one, wherever its agent is.
    ///
    /// # Errors
    /// The same, and [`Error::Conflict`] on `ix_kernels_unique_sess_token` when the name is taken (DM-19).
    pub async fn insert_kernel(&mut self, kernel: &NewKernel) -> Result<()> {
        let obstacles = self.insert_kernels(std::slice::from_ref(kernel)).await?;
        if obstacles.taken.is_empty() {
            return Ok(());
        }
        Err(Error::Conflict {
            kind: ConflictKind::Unique,
            constraint: UNIQUE_NAME.to_owned(),
        })
    }

    /// Adds kernels, `PREPARING`, and counts them at their keypairs and their agents. Says what is in their way, in which
    /// case the unit of work is to be given up.
    ///
    /// # Errors
    /// [`Error::Conflict`] on `pk_kernels`, or for a missing agent, domain, group, user or keypair; [`Error::TooLong`].
    pub async fn insert_kernels(&mut self, kernels: &[NewKernel]) -> Result<Obstacles> {
        let mut owners: BTreeMap<&AccessKey, i64> = BTreeMap::new();
        for kernel in kernels {
            *owners.entry(&kernel.access_key).or_default() += 1;
        }
        // The keypairs' rows first: that is the order of locks.
        self.add_to_concurrency(&owners.into_iter().collect::<Vec<_>>())
            .await?;
        let mut taken: BTreeSet<KernelId> = kernels.iter().map(|kernel| kernel.id).collect();
        for batch in kernels.chunks(BATCH) {
            let rows = batch.iter().map(values_of).collect();
            let unless_taken = "ON CONFLICT (access_key, sess_id) WHERE status <> 'TERMINATED' AND role = 'master' \
                                DO NOTHING RETURNING id";
            for row in self.insert_all("kernels", rows, unless_taken).await? {
                taken.remove(&row.get("id")?);
            }
        }
        if !taken.is_empty() {
            return Ok(Obstacles {
                taken: taken.into_iter().collect(),
                gone: Vec::new(),
            });
        }
        let mut parts: BTreeMap<&AgentId, ResourceSlot> = BTreeMap::new();
        for kernel in kernels {
            let part = parts.entry(&kernel.agent).or_default();
            *part = part.plus(&kernel.occupied_slots);
        }
        Ok(Obstacles {
            taken: Vec::new(),
            gone: self.add_to_occupied_slots(&parts).await?,
        })
    }

    /// Moves a kernel from one of the states `from` to `to`, with what to say about it; `None` leaves what was said.
    /// False means that it was in none of them. To `TERMINATED` leads only [`Tx::terminate_kernel`].
    pub async fn set_kernel_status(
        &mut self,
        kernel: KernelId,
        from: &[KernelStatus],
        to: KernelStatus,
        status_info: Option<&str>,
    ) -> Result<bool> {
        debug_assert_ne!(
            to,
            KernelStatus::Terminated,
            "terminating a kernel also releases what it holds"
        );
        let mut values = vec![("status", to.into())];
        if let Some(info) = status_info {
            values.push(("status_info", info.into()));
        }
        let condition = format!("id = $1 AND {STATE} IN ({})", literals(from));
        Ok(self
            .update("kernels", values, &condition, params![kernel])
            .await?
            > 0)
    }

    /// Moves every kernel that is in one of the states `from` to `to`; says how many these were. To `TERMINATED` leads only
    /// [`Tx::terminate_kernel`].
    pub async fn set_all_kernel_status(&mut self, from: &[KernelStatus], to: KernelStatus) -> Result<u64> {
        debug_assert_ne!(
            to,
            KernelStatus::Terminated,
            "terminating a kernel also releases what it holds"
        );
        let condition = format!("status IN ({})", literals(from));
        // In the order of all who lock many kernels.
        let for_update = self.for_update();
        if !for_update.is_empty() {
            let sql = format!("SELECT id FROM kernels WHERE {condition} ORDER BY id{for_update}");
            self.fetch(sql, params![]).await?;
        }
        self.update("kernels", vec![("status", to.into())], &condition, params![])
            .await
    }

    /// Records that kernels run, and where each does; gives those that were in one of the states `from` until now.
    ///
    /// # Errors
    /// [`crate::Error::TooLong`].
    pub async fn kernels_started(
        &mut self,
        kernels: &[(KernelId, &KernelPorts)],
        from: &[KernelStatus],
    ) -> Result<Vec<KernelId>> {
        let mut started = Vec::with_capacity(kernels.len());
        for batch in kernels.chunks(BATCH) {
            self.lock_kernels(batch.iter().map(|(kernel, _)| *kernel).collect())
                .await?;
            let mut params: Vec<Param> = Vec::new();
            for (kernel, ports) in batch {
                let values = vec![
                    ("container_id", (&ports.container_id).into()),
                    ("kernel_host", ports.kernel_host.as_deref().into()),
                    ("repl_in_port", ports.repl_in_port.into()),
                    ("repl_out_port", ports.repl_out_port.into()),
                    ("stdin_port", ports.stdin_port.into()),
                    ("stdout_port", ports.stdout_port.into()),
                    ("service_ports", (&ports.service_ports).into()),
                ];
                catalog::check_lengths("kernels", &values)?;
                params.push((*kernel).into());
                params.extend(values.into_iter().map(|(_, value)| value));
            }
            let sql = format!(
                "WITH started (kernel, container, host, repl_in, repl_out, pty_in, pty_out, services) AS (VALUES {}) \
                 UPDATE kernels SET status = 'RUNNING', container_id = started.container, kernel_host = started.host, \
                 repl_in_port = started.repl_in, repl_out_port = started.repl_out, stdin_port = started.pty_in, \
                 stdout_port = started.pty_out, service_ports = started.services FROM started \
                 WHERE kernels.id = started.kernel AND {STATE} IN ({}) RETURNING id",
                places(batch.len(), 8),
                literals(from)
            );
            for row in self.fetch(sql, params).await? {
                started.push(row.get("id")?);
            }
        }
        Ok(started)
    }

    /// Locks kernels in the order of all who lock many.
    async fn lock_kernels(&mut self, kernels: Vec<KernelId>) -> Result<()> {
        let for_update = self.for_update();
        if for_update.is_empty() || kernels.len() < 2 {
            return Ok(());
        }
        let sql = format!(
            "SELECT id FROM kernels WHERE id IN {} ORDER BY id{for_update}",
            places(1, kernels.len())
        );
        let params = kernels.into_iter().map(Param::from).collect();
        self.fetch(sql, params).await?;
        Ok(())
    }

    /// Ends a kernel in whatever state and releases what it holds (`agent-protocol.md` 5.7). May be repeated: false
    /// means that it had ended before, or never was.
    pub async fn terminate_kernel(
        &mut self,
        kernel: KernelId,
        reason: &str,
        at: DateTime<Utc>,
        last_stat: Option<Value>,
    ) -> Result<bool> {
        let its_own = "WHERE access_key = (SELECT access_key FROM kernels WHERE id = $1)";
        self.lock_keypairs(its_own, params![kernel]).await?;
        // The state is a literal for PostgreSQL's sake; NULL statistics are no news.
        let sql = format!(
            "UPDATE kernels SET status = 'TERMINATED', status_info = $2, terminated_at = $3, \
             last_stat = coalesce($4, last_stat) WHERE id = $1 AND {STATE} <> 'TERMINATED' \
             RETURNING access_key, role, agent"
        );
        let read = |row: &Row| {
            let is_master = row.get::<String>("role")? == "master";
            Ok((
                row.opt::<AccessKey>("access_key")?.filter(|_| is_master),
                row.opt::<AgentId>("agent")?,
            ))
        };
        let params = params![kernel, reason, at, last_stat.as_ref()];
        let Some((access_key, agent)) = self.first(sql, params, read).await? else {
            return Ok(false);
        };
        if let Some(access_key) = access_key {
            let sql = "UPDATE keypairs SET concurrency_used = \
                       CASE WHEN concurrency_used > 1 THEN concurrency_used - 1 ELSE 0 END WHERE access_key = $1";
            self.execute(sql, params![&access_key]).await?;
        }
        if let Some(agent) = agent {
            self.rewrite_occupied_slots(&agent).await?;
        }
        Ok(true)
    }

    /// Counts uses of a live session; one that is gone is nothing (`agent-protocol.md` 5.12).
    pub async fn increment_session_usage(
        &mut self,
        access_key: &AccessKey,
        name: &str,
        count: i64,
    ) -> Result<()> {
        let sql = "UPDATE kernels SET num_queries = coalesce(num_queries, 0) + $3 \
                   WHERE access_key = $1 AND sess_id = $2 AND role = 'master' AND status <> 'TERMINATED'";
        self.execute(sql, params![access_key, name, count]).await?;
        Ok(())
    }

    /// Counts uses of many live sessions, each of which may occur once; those that are gone are nothing.
    pub async fn record_session_usage(&mut self, usage: &[(AccessKey, String, i64)]) -> Result<()> {
        let mut usage: Vec<_> = usage.iter().collect();
        usage.sort_by(|one, other| (one.0.as_str(), &one.1).cmp(&(other.0.as_str(), &other.1)));
        for batch in usage.chunks(BATCH) {
            self.lock_sessions(batch).await?;
            let params: Vec<Param> = batch
                .iter()
                .flat_map(|(key, name, count)| [key.into(), name.into(), (*count).into()])
                .collect();
            let sql = format!(
                concat!(
                    "WITH wanted (owner, name, count) AS (VALUES {}) \
                     UPDATE kernels SET num_queries = coalesce(num_queries, 0) + wanted.count FROM wanted \
                     WHERE kernels.id = ",
                    holder_of_name!()
                ),
                places(batch.len(), 3)
            );
            self.execute(sql, params).await?;
        }
        Ok(())
    }

    /// In one order for everybody, or two who count the same sessions would wait for each other.
    async fn lock_sessions(&mut self, sessions: &[&(AccessKey, String, i64)]) -> Result<()> {
        let for_update = self.for_update();
        if for_update.is_empty() {
            return Ok(());
        }
        let params: Vec<Param> = sessions
            .iter()
            .flat_map(|(key, name, _)| [key.into(), name.into()])
            .collect();
        let sql = format!(
            concat!(
                "WITH wanted (owner, name) AS (VALUES {}) \
                 SELECT k.id FROM kernels k JOIN wanted ON k.id = ",
                holder_of_name!(),
                " ORDER BY k.id{} OF k"
            ),
            places(sessions.len(), 2),
            for_update
        );
        self.fetch(sql, params).await?;
        Ok(())
    }

    /// Adds to what is stored of agents to be occupied, in the order of their names. Says which of them are not alive.
    async fn add_to_occupied_slots(
        &mut self,
        parts: &BTreeMap<&AgentId, ResourceSlot>,
    ) -> Result<Vec<AgentId>> {
        let mut gone = Vec::new();
        let parts: Vec<_> = parts.iter().collect();
        for batch in parts.chunks(BATCH) {
            let sql = format!(
                "SELECT id, status, occupied_slots FROM agents WHERE id IN {} ORDER BY id{}",
                places(1, batch.len()),
                self.for_update()
            );
            let ids = batch.iter().map(|(agent, _)| Param::from(**agent)).collect();
            let mut sums: BTreeMap<AgentId, ResourceSlot> = BTreeMap::new();
            for row in self.fetch(sql, ids).await? {
                let id: AgentId = row.get("id")?;
                if row.get::<AgentStatus>("status")?.is_gone() {
                    gone.push(id.clone());
                }
                sums.insert(id, row.opt("occupied_slots")?.unwrap_or_default());
            }
            let params: Vec<Param> = batch
                .iter()
                .filter_map(|(agent, part)| Some((*agent, sums.get(**agent)?.plus(part))))
                .flat_map(|(agent, sum)| [(*agent).into(), (&sum).into()])
                .collect();
            if params.is_empty() {
                continue;
            }
            let sql = format!(
                "WITH sums (agent, slots) AS (VALUES {}) UPDATE agents SET occupied_slots = sums.slots FROM sums \
                 WHERE agents.id = sums.agent",
                places(params.len() / 2, 2)
            );
            self.execute(sql, params).await?;
        }
        Ok(gone)
    }

    /// Writes at an agent what its live kernels occupy together. The lock comes before the sum, so that this sees what those
    /// who had it before have done.
    async fn rewrite_occupied_slots(&mut self, agent: &AgentId) -> Result<()> {
        let sql = "SELECT id FROM agents WHERE id = $1".to_owned() + self.for_update();
        self.fetch(sql, params![agent]).await?;
        let sum = self.occupied_by_agent(agent).await?;
        let values = vec![("occupied_slots", (&sum).into())];
        self.update("agents", values, "id = $1", params![agent]).await?;
        Ok(())
    }
}

/// The columns of a kernel that is added.
fn values_of(kernel: &NewKernel) -> Vec<(&'static str, Param)> {
    let empty = Value::Object(Default::default());
    vec![
        ("id", kernel.id.into()),
        ("sess_id", (&kernel.sess_id).into()),
        ("role", "master".into()),
        ("agent", (&kernel.agent).into()),
        ("agent_addr", (&kernel.agent_addr).into()),
        ("domain_name", (&kernel.domain_name).into()),
        ("group_id", kernel.group_id.into()),
        ("user_uuid", kernel.user_uuid.into()),
        ("access_key", (&kernel.access_key).into()),
        ("image", (&kernel.image).into()),
        ("registry", (&kernel.registry).into()),
        ("tag", kernel.tag.as_deref().into()),
        ("occupied_slots", (&kernel.occupied_slots).into()),
        ("occupied_shares", (&empty).into()),
        ("environ", (&kernel.environ).into()),
        ("repl_in_port", 0.into()),
        ("repl_out_port", 0.into()),
        ("stdin_port", 0.into()),
        ("stdout_port", 0.into()),
        ("created_at", kernel.created_at.into()),
        ("status", KernelStatus::Preparing.into()),
        ("num_queries", 0.into()),
    ]
}
