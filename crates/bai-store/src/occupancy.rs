//! What live kernels occupy, derived from their rows (`data-model.md` 7.4).
//!
//! Each sum reads live kernels alone (DS-1, DS-2), through the index over them. Few different amounts occur: the database
//! counts them. An empty sum has no slots. Types that the cluster does not know are not dropped here.

use std::collections::BTreeMap;

use bai_model::{AccessKey, AgentId, GroupId, ResourceSlot};

use crate::driver::{Param, Row, params};
use crate::kernel::is_live;
use crate::{Reader, Result};

/// What `n` kernels with the same amounts occupy.
fn counted(row: &Row) -> Result<ResourceSlot> {
    let slots: ResourceSlot = row.opt("occupied_slots")?.unwrap_or_default();
    Ok(slots.times(row.get("n")?))
}

fn add<K: Ord>(sums: &mut BTreeMap<K, ResourceSlot>, key: K, slots: &ResourceSlot) {
    let sum = sums.entry(key).or_default();
    *sum = sum.plus(slots);
}

/// What all live kernels occupy, by what counts against a limit. Who is missing has none.
#[derive(Clone, Debug, Default)]
pub struct Occupied {
    /// By agent.
    pub agents: BTreeMap<AgentId, ResourceSlot>,
    /// By the owner's keypair.
    pub keypairs: BTreeMap<AccessKey, ResourceSlot>,
    /// By group.
    pub groups: BTreeMap<GroupId, ResourceSlot>,
    /// By domain.
    pub domains: BTreeMap<String, ResourceSlot>,
    /// How many sessions of a keypair are not terminated.
    pub sessions: BTreeMap<AccessKey, i64>,
}

impl Reader {
    /// Every sum at once: one statement where a decision needs several of them.
    pub async fn occupied_by_all(&self) -> Result<Occupied> {
        let sql = concat!(
            "SELECT agent, access_key, group_id, domain_name, occupied_slots, count(*) AS n, \
             count(CASE WHEN role = 'master' THEN 1 END) AS sessions FROM kernels WHERE ",
            is_live!(),
            " GROUP BY agent, access_key, group_id, domain_name, occupied_slots"
        );
        let mut all = Occupied::default();
        for row in self.fetch(sql, params![]).await? {
            let slots = counted(&row)?;
            if let Some(access_key) = row.opt::<AccessKey>("access_key")? {
                *all.sessions.entry(access_key.clone()).or_default() += row.get::<i64>("sessions")?;
                add(&mut all.keypairs, access_key, &slots);
            }
            if let Some(agent) = row.opt("agent")? {
                add(&mut all.agents, agent, &slots);
            }
            add(&mut all.groups, row.get("group_id")?, &slots);
            add(&mut all.domains, row.get("domain_name")?, &slots);
        }
        Ok(all)
    }

    /// What the live kernels occupy that `condition` selects.
    async fn occupied(&self, condition: &str, params: Vec<Param>) -> Result<ResourceSlot> {
        let sql = format!(
            "SELECT occupied_slots, count(*) AS n FROM kernels WHERE {condition} AND {} GROUP BY occupied_slots",
            is_live!()
        );
        let slots = self.list(sql, params, counted).await?;
        Ok(slots
            .iter()
            .fold(ResourceSlot::default(), |sum, slots| sum.plus(slots)))
    }

    /// What the live kernels of a keypair occupy.
    pub async fn occupied_by_keypair(&self, access_key: &AccessKey) -> Result<ResourceSlot> {
        self.occupied("access_key = $1", params![access_key]).await
    }

    /// What the live kernels of a group occupy.
    pub async fn occupied_by_group(&self, group: GroupId) -> Result<ResourceSlot> {
        self.occupied("group_id = $1", params![group]).await
    }

    /// What the live kernels of a domain occupy.
    pub async fn occupied_by_domain(&self, domain: &str) -> Result<ResourceSlot> {
        self.occupied("domain_name = $1", params![domain]).await
    }

    /// What the live kernels on an agent occupy.
    pub async fn occupied_by_agent(&self, agent: &AgentId) -> Result<ResourceSlot> {
        self.occupied("agent = $1", params![agent]).await
    }

    /// What the live kernels occupy on each agent that has some, in one statement for all agents.
    pub async fn occupied_by_all_agents(&self) -> Result<BTreeMap<AgentId, ResourceSlot>> {
        let sql = concat!(
            "SELECT agent, occupied_slots, count(*) AS n FROM kernels WHERE agent IS NOT NULL AND ",
            is_live!(),
            " GROUP BY agent, occupied_slots"
        );
        let mut sums: BTreeMap<AgentId, ResourceSlot> = BTreeMap::new();
        for row in self.fetch(sql, params![]).await? {
            add(&mut sums, row.get("agent")?, &counted(&row)?);
        }
        Ok(sums)
    }

    /// How many sessions of a keypair are not terminated.
    pub async fn count_live_sessions(&self, access_key: &AccessKey) -> Result<i64> {
        let sql = concat!(
            "SELECT count(CASE WHEN role = 'master' THEN 1 END) AS n FROM kernels WHERE access_key = $1 AND ",
            is_live!()
        );
        self.count(sql, params![access_key]).await
    }

    /// How many sessions of all are not terminated.
    pub async fn count_live_sessions_total(&self) -> Result<i64> {
        let sql = concat!(
            "SELECT count(*) AS n FROM kernels WHERE role = 'master' AND ",
            is_live!()
        );
        self.count(sql, params![]).await
    }
}
