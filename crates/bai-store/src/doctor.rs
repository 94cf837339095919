//! What may be wrong with the rows of an existing site, and its repair (`data-model.md` 10.6, 20).
//!
//! Reading tolerates all of this; the doctor tells of it and, when asked to, writes what we read. Counters that differ from
//! the rows they count are in `accounting`, the schema in `schema`.

use bai_model::{AccessKey, AgentId, AgentStatus, KernelId, KernelStatus, ResourceSlot};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::driver::{Dialect, Param, Row, params};
use crate::{Reader, Result, Tx};

/// A stored map of amounts that is not as we would write it.
#[derive(Clone, Debug, PartialEq)]
pub struct DirtySlots {
    /// Where: the table,
    pub table: &'static str,
    /// the column,
    pub column: &'static str,
    /// and the key of the row, as text.
    pub key: String,
    /// What is stored; nothing for NULL and for what cannot be read at all.
    pub stored: Option<Value>,
    /// What it is read as.
    pub read_as: ResourceSlot,
    /// The slots whose amounts make no sense, and are read as if they were not there; or why nothing can be read.
    pub garbage: Vec<String>,
}

/// A session that is not terminated and on no agent that is alive, or in no state at all. It keeps its name and its
/// amounts (DM-18).
#[derive(Clone, Debug, PartialEq)]
pub struct OrphanKernel {
    /// `kernels.id`.
    pub id: KernelId,
    /// The session's name.
    pub sess_id: Option<String>,
    /// The owner's keypair.
    pub access_key: Option<AccessKey>,
    /// The kernel's state; NULL is none.
    pub status: Option<KernelStatus>,
    /// Where it should be.
    pub agent: Option<AgentId>,
    /// That agent's state.
    pub agent_status: Option<AgentStatus>,
    /// When it was asked for.
    pub created_at: Option<DateTime<Utc>>,
}

/// What the database's user may do, beside reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Whether tables can be made, as our additions need.
    pub may_create: bool,
    /// Tables of somebody else, for which no index can be made.
    pub not_owned: Vec<String>,
    /// Tables whose rows cannot all be read and changed.
    pub not_writable: Vec<String>,
}

/// The columns with amounts: table, key, column, and which rows matter. What ended kernels
/// occupied is history and left alone.
const SLOT_COLUMNS: [(&str, &str, &str, &str); 7] = [
    ("agents", "id", "available_slots", ""),
    ("agents", "id", "occupied_slots", ""),
    ("domains", "name", "total_resource_slots", ""),
    ("groups", "id", "total_resource_slots", ""),
    ("keypair_resource_policies", "name", "total_resource_slots", ""),
    ("kernels", "id", "occupied_slots", " WHERE status <> 'TERMINATED'"),
    ("resource_presets", "name", "resource_slots", ""),
];

impl Reader {
    /// Every stored map of amounts that is not as we would write it: unit suffixes, numbers, exponents, NULL, garbage.
    pub async fn dirty_slots(&self) -> Result<Vec<DirtySlots>> {
        let mut found = Vec::new();
        for (table, key, column, condition) in SLOT_COLUMNS {
            let sql = format!(
                "SELECT cast({key} AS text) AS key, {column} AS slots FROM \"{table}\"{condition} ORDER BY {key}"
            );
            for row in self.fetch(sql, params![]).await? {
                let (stored, read_as, garbage) = match row.opt::<Value>("slots") {
                    Ok(Some(stored)) => {
                        let (read_as, garbage) = ResourceSlot::from_stored(&stored);
                        (Some(stored), read_as, garbage)
                    }
                    Ok(None) => (None, ResourceSlot::default(), Vec::new()),
                    // Such as a number that is too large for anything.
                    Err(error) => (None, ResourceSlot::default(), vec![error.to_string()]),
                };
                if garbage.is_empty() && stored.as_ref() == Some(&read_as.to_json()) {
                    continue;
                }
                found.push(DirtySlots {
                    table,
                    column,
                    key: row.get("key")?,
                    stored,
                    read_as,
                    garbage,
                });
            }
        }
        Ok(found)
    }

    /// Every session that nothing will end by itself, oldest first.
    pub async fn orphan_kernels(&self) -> Result<Vec<OrphanKernel>> {
        let sql = "SELECT k.id, k.sess_id, k.access_key, k.status, k.agent, a.status AS agent_status, k.created_at \
                   FROM kernels k LEFT JOIN agents a ON a.id = k.agent \
                   WHERE k.status IS NULL OR (k.status <> 'TERMINATED' AND (a.status IS NULL OR a.status <> 'ALIVE')) \
                   ORDER BY k.created_at, k.id";
        self.list(sql, params![], |row: &Row| {
            Ok(OrphanKernel {
                id: row.get("id")?,
                sess_id: row.opt("sess_id")?,
                access_key: row.opt("access_key")?,
                status: row.opt("status")?,
                agent: row.opt("agent")?,
                agent_status: row.opt("agent_status")?,
                created_at: row.opt("created_at")?,
            })
        })
        .await
    }
}

impl Reader {
    /// What the database's user may do. On SQLite, whose file decides, everything.
    pub async fn rights(&self) -> Result<Rights> {
        let mut rights = Rights {
            may_create: true,
            ..Rights::default()
        };
        if self.dialect().await == Dialect::Sqlite {
            return Ok(rights);
        }
        let creates = "SELECT has_schema_privilege(current_schema(), 'CREATE') AS creates";
        let creates = self.first(creates, params![], |row| row.get("creates")).await?;
        rights.may_create = creates.unwrap_or(false);
        let tables = "SELECT relname AS name, pg_has_role(relowner, 'USAGE') AS owns, \
                      has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT') \
                      AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE') AS writes \
                      FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace ORDER BY relname";
        for row in self.fetch(tables, params![]).await? {
            let name: String = row.get("name")?;
            if !row.get::<bool>("owns")? {
                rights.not_owned.push(name.clone());
            }
            // The revision is for the original to write.
            if !row.get::<bool>("writes")? && name != "alembic_version" {
                rights.not_writable.push(name);
            }
        }
        Ok(rights)
    }
}

impl Tx {
    /// Writes every map of amounts as we read it and answers what was different. Garbage is left as it is, for somebody
    /// who knows what was meant.
    pub async fn clean_slots(&mut self) -> Result<Vec<DirtySlots>> {
        let dirty = self.dirty_slots().await?;
        for slots in dirty.iter().filter(|slots| slots.garbage.is_empty()) {
            let Some((_, key, ..)) = SLOT_COLUMNS
                .iter()
                .find(|(table, _, column, _)| *table == slots.table && *column == slots.column)
            else {
                continue;
            };
            let values = vec![(slots.column, Param::from(&slots.read_as))];
            let condition = format!("cast({key} AS text) = $1");
            self.update(slots.table, values, &condition, params![&slots.key])
                .await?;
        }
        Ok(dirty)
    }
}
