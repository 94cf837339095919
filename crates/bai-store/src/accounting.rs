//! The counters that 19.06 keeps beside the rows they count: finding and repairing differences (`data-model.md` 7.2,
//! 7.3, 15.3).
//!
//! Nothing of ours decides by these counters; they are kept so that the original can take over again.

use std::collections::BTreeMap;

use bai_model::{AccessKey, AgentId, ResourceSlot};

use crate::agent::same_slots;
use crate::driver::{Param, params};
use crate::store::places;
use crate::{Reader, Result, Tx};

/// How many agents one statement of [`Tx::recalculate_usage`] repairs.
const BATCH: usize = 100;

/// A stored counter that is not what the rows say.
#[derive(Clone, Debug, PartialEq)]
pub enum Discrepancy {
    /// `keypairs.concurrency_used`.
    Keypair {
        /// Whose.
        access_key: AccessKey,
        /// What is stored; NULL counts as 0.
        stored: i64,
        /// How many live kernels there are.
        derived: i64,
    },
    /// `agents.occupied_slots`.
    Agent {
        /// Whose.
        agent: AgentId,
        /// What is stored.
        stored: ResourceSlot,
        /// The sum over the live kernels.
        derived: ResourceSlot,
    },
}

impl Reader {
    /// Compares every stored counter with what the rows say. Two statements outside a [`Tx`] may see different moments.
    pub async fn check_accounting(&self) -> Result<Vec<Discrepancy>> {
        let keypairs = "SELECT * FROM (SELECT p.access_key, coalesce(p.concurrency_used, 0) AS stored, \
                        (SELECT count(*) FROM kernels k WHERE k.access_key = p.access_key \
                        AND k.status <> 'TERMINATED') AS derived FROM keypairs p) counted \
                        WHERE stored <> derived ORDER BY access_key";
        let mut found = self
            .list(keypairs, params![], |row| {
                Ok(Discrepancy::Keypair {
                    access_key: row.get("access_key")?,
                    stored: row.get("stored")?,
                    derived: row.get("derived")?,
                })
            })
            .await?;
        let agents = "SELECT a.id, a.occupied_slots AS stored, k.occupied_slots AS part FROM agents a \
                      LEFT JOIN kernels k ON k.agent = a.id AND k.status <> 'TERMINATED'";
        let mut sums: BTreeMap<AgentId, (ResourceSlot, ResourceSlot)> = BTreeMap::new();
        for row in self.fetch(agents, params![]).await? {
            let stored = row.opt("stored")?.unwrap_or_default();
            let (_, derived) = sums
                .entry(row.get("id")?)
                .or_insert((stored, ResourceSlot::default()));
            if let Some(part) = row.opt::<ResourceSlot>("part")? {
                *derived = derived.plus(&part);
            }
        }
        for (agent, (stored, derived)) in sums {
            if !same_slots(&stored, &derived) {
                found.push(Discrepancy::Agent {
                    agent,
                    stored,
                    derived,
                });
            }
        }
        Ok(found)
    }
}

impl Tx {
    /// Sets every counter to what the rows say and answers what had been wrong.
    pub async fn recalculate_usage(&mut self) -> Result<Vec<Discrepancy>> {
        // Whoever creates or terminates begins with the row of a keypair. A lock of ours alone (`Tx::lock_placement`) would not
        // do for a database that is the original's still.
        self.lock_keypairs("", params![]).await?;
        let agents = "SELECT id FROM agents ORDER BY id".to_owned() + self.for_update();
        self.fetch(agents, params![]).await?;
        let found = self.check_accounting().await?;
        let sql = "UPDATE keypairs SET concurrency_used = (SELECT count(*) FROM kernels k \
                   WHERE k.access_key = keypairs.access_key AND k.status <> 'TERMINATED') \
                   WHERE coalesce(concurrency_used, -1) <> (SELECT count(*) FROM kernels k \
                   WHERE k.access_key = keypairs.access_key AND k.status <> 'TERMINATED')";
        self.execute(sql, params![]).await?;
        let agents: Vec<_> = found
            .iter()
            .filter_map(|discrepancy| match discrepancy {
                Discrepancy::Agent { agent, derived, .. } => Some((agent, derived)),
                Discrepancy::Keypair { .. } => None,
            })
            .collect();
        for batch in agents.chunks(BATCH) {
            let params: Vec<Param> = batch
                .iter()
                .flat_map(|(agent, derived)| [(*agent).into(), (*derived).into()])
                .collect();
            let sql = format!(
                "WITH derived (id, slots) AS (VALUES {}) UPDATE agents SET occupied_slots = derived.slots \
                 FROM derived WHERE agents.id = derived.id",
                places(batch.len(), 2)
            );
            self.execute(sql, params).await?;
        }
        Ok(found)
    }
}
