//! Agents, the hosts that run kernels (`data-model.md` 6, 7.5).
//!
//! Not here: `occupied_slots`, which moves with the kernels it sums (`kernel`, `accounting`).

use bai_model::{AgentId, AgentStatus, ResourceSlot};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::driver::{Param, Row, params};
use crate::{Reader, Result, Tx};

/// An agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRow {
    /// The key.
    pub id: AgentId,
    /// What its heartbeats, or their absence, tell.
    pub status: AgentStatus,
    /// Where it says it is.
    pub region: String,
    /// Its capacity as last reported.
    pub available_slots: ResourceSlot,
    /// The stored sum over its live kernels; decisions use [`Reader::occupied_by_agent`].
    pub occupied_slots: ResourceSlot,
    /// Its RPC endpoint.
    pub addr: String,
    /// When it first came.
    pub first_contact: Option<DateTime<Utc>>,
    /// When it was lost or left; NULL while it is alive.
    pub lost_at: Option<DateTime<Utc>>,
    /// Its version.
    pub version: String,
    /// Plugins by name.
    pub compute_plugins: Value,
}

/// What a heartbeat tells of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAgent {
    /// The key.
    pub id: AgentId,
    /// Where it says it is.
    pub region: String,
    /// Its RPC endpoint.
    pub addr: String,
    /// Its version.
    pub version: String,
    /// Its capacity.
    pub available_slots: ResourceSlot,
    /// Plugins by name.
    pub compute_plugins: Value,
}

/// What [`Tx::upsert_agent`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentChange {
    /// The agent is new.
    Joined,
    /// It had been lost or had left.
    Revived,
    /// Something else about it is new.
    Changed,
    /// Nothing was written.
    Unchanged,
}

fn read(row: &Row) -> Result<AgentRow> {
    Ok(AgentRow {
        id: row.get("id")?,
        status: row.get("status")?,
        region: row.get("region")?,
        available_slots: row.opt("available_slots")?.unwrap_or_default(),
        occupied_slots: row.opt("occupied_slots")?.unwrap_or_default(),
        addr: row.get("addr")?,
        first_contact: row.opt("first_contact")?,
        lost_at: row.opt("lost_at")?,
        version: row.get("version")?,
        compute_plugins: row
            .opt("compute_plugins")?
            .unwrap_or_else(|| Value::Object(Default::default())),
    })
}

macro_rules! select_agents {
    ($rest:literal) => {
        concat!(
            "SELECT id, status, region, available_slots, occupied_slots, addr, first_contact, lost_at, version, \
             compute_plugins FROM agents ",
            $rest
        )
    };
}

/// Whether two maps name the same slots with equal amounts, in whatever order.
pub(crate) fn same_slots(one: &ResourceSlot, other: &ResourceSlot) -> bool {
    one.0.len() == other.0.len()
        && one
            .0
            .iter()
            .all(|(name, amount)| other.get(name) == Some(*amount))
}

impl Reader {
    /// The agent of this name, in whatever state.
    pub async fn agent(&self, id: &AgentId) -> Result<Option<AgentRow>> {
        self.first(select_agents!("WHERE id = $1"), params![id], read)
            .await
    }

    /// The agents that are `ALIVE`, by name.
    pub async fn alive_agents(&self) -> Result<Vec<AgentRow>> {
        self.list(
            select_agents!("WHERE status = 'ALIVE' ORDER BY id"),
            params![],
            read,
        )
        .await
    }

    /// The agents that are `ALIVE`, and where they are called.
    pub async fn addresses_of_agents(&self) -> Result<Vec<(AgentId, String)>> {
        let sql = "SELECT id, addr FROM agents WHERE status = 'ALIVE' ORDER BY id";
        self.list(sql, params![], |row| Ok((row.get("id")?, row.get("addr")?)))
            .await
    }
}

impl Tx {
    /// Records a heartbeat: a new agent joins, one that was lost or had left is alive again, and of one that is alive
    /// what differs is rewritten, amounts being compared as numbers (DM-9). A `RESTARTING` one is left alone.
    /// `occupied_slots` is kept.
    ///
    /// # Errors
    /// [`crate::Error::TooLong`].
    pub async fn upsert_agent(&mut self, agent: &NewAgent, at: DateTime<Utc>) -> Result<AgentChange> {
        let values: Vec<(&'static str, Param)> = vec![
            ("status", AgentStatus::Alive.into()),
            ("region", (&agent.region).into()),
            ("available_slots", (&agent.available_slots).into()),
            ("addr", (&agent.addr).into()),
            ("lost_at", None::<DateTime<Utc>>.into()),
            ("version", (&agent.version).into()),
            ("compute_plugins", (&agent.compute_plugins).into()),
        ];
        let known = match self.lock_agent(&agent.id).await? {
            Some(known) => known,
            None => {
                let mut values = values.clone();
                values.push(("id", (&agent.id).into()));
                values.push(("occupied_slots", (&ResourceSlot::default()).into()));
                values.push(("first_contact", at.into()));
                if self
                    .insert("agents", values, "ON CONFLICT (id) DO NOTHING")
                    .await?
                {
                    return Ok(AgentChange::Joined);
                }
                // Another manager heard it first.
                let Some(known) = self.lock_agent(&agent.id).await? else {
                    return Ok(AgentChange::Unchanged);
                };
                known
            }
        };
        let change = match known.status {
            AgentStatus::Lost | AgentStatus::Terminated => AgentChange::Revived,
            AgentStatus::Alive if !is_described_by(&known, agent) => AgentChange::Changed,
            AgentStatus::Alive | AgentStatus::Restarting => return Ok(AgentChange::Unchanged),
        };
        self.update("agents", values, "id = $1", params![&agent.id])
            .await?;
        Ok(change)
    }

    /// The agent of this name, whose row nobody else changes until the unit of work ends. Agents are
    /// locked after keypairs and kernels: that is the order of all others.
    pub async fn lock_agent(&mut self, id: &AgentId) -> Result<Option<AgentRow>> {
        let for_update = self.for_update();
        let sql = select_agents!("WHERE id = $1").to_owned() + for_update;
        self.first(sql, params![id], read).await
    }

    /// Sets the state of an agent and when it was lost. Answers whether there is such an agent.
    pub async fn set_agent_status(
        &mut self,
        id: &AgentId,
        status: AgentStatus,
        lost_at: Option<DateTime<Utc>>,
    ) -> Result<bool> {
        let values = vec![("status", status.into()), ("lost_at", lost_at.into())];
        Ok(self.update("agents", values, "id = $1", params![id]).await? > 0)
    }
}

fn is_described_by(known: &AgentRow, agent: &NewAgent) -> bool {
    known.region == agent.region
        && known.addr == agent.addr
        && known.version == agent.version
        && known.compute_plugins == agent.compute_plugins
        && same_slots(&known.available_slots, &agent.available_slots)
}
