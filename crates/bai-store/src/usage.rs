//! What sessions that have ended used (`data-model.md` 18, `http-api.md` 4.12).
//!
//! Rows come in pages, so that a month with any number of sessions is read in bounded memory and short statements.
//!
//! Not here: sums by group, calendar days, and what the statistics mean (`bai-core`).

use bai_model::{AccessKey, GroupId, KernelId, ResourceSlot};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::driver::{Param, Row, params};
use crate::{Reader, Result};

/// A kernel that has ended, as far as its usage is concerned, with its group.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    /// `kernels.id`.
    pub id: KernelId,
    /// The session's name.
    pub sess_id: Option<String>,
    /// The owner's keypair.
    pub access_key: Option<AccessKey>,
    /// `groups.id`.
    pub group_id: GroupId,
    /// `groups.name`.
    pub group_name: String,
    /// The group's domain.
    pub domain_name: String,
    /// The canonical image reference.
    pub image: Option<String>,
    /// What it occupied.
    pub occupied_slots: ResourceSlot,
    /// Statistics at its end.
    pub last_stat: Option<Value>,
    /// When it was asked for.
    pub created_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub terminated_at: DateTime<Utc>,
}

/// Which kernels to report.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// Ended at this time or later,
    pub from: DateTime<Utc>,
    /// and before this time.
    pub until: DateTime<Utc>,
    /// Of these groups; of all if there are none.
    pub groups: Vec<GroupId>,
}

/// A group in which kernels have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageGroupRow {
    /// `groups.id`.
    pub id: GroupId,
    /// `groups.name`.
    pub name: String,
    /// The group's domain.
    pub domain_name: String,
}

/// Appends that only kernels of the query's groups are meant.
fn restrict_to_groups(sql: &mut String, params: &mut Vec<Param>, groups: &[GroupId]) {
    if groups.is_empty() {
        return;
    }
    let places: Vec<String> = groups
        .iter()
        .map(|group| {
            params.push((*group).into());
            format!("${}", params.len())
        })
        .collect();
    *sql += &format!(" AND k.group_id IN ({})", places.join(", "));
}

fn read(row: &Row) -> Result<UsageRow> {
    Ok(UsageRow {
        id: row.get("id")?,
        sess_id: row.opt("sess_id")?,
        access_key: row.opt("access_key")?,
        group_id: row.get("group_id")?,
        group_name: row.get("group_name")?,
        domain_name: row.get("domain_name")?,
        image: row.opt("image")?,
        occupied_slots: row.opt("occupied_slots")?.unwrap_or_default(),
        last_stat: row.opt("last_stat")?,
        created_at: row.opt("created_at")?,
        terminated_at: row.get("terminated_at")?,
    })
}

impl Reader {
    /// The groups of the kernels, by domain and name.
    pub async fn usage_groups(&self, query: &UsageQuery) -> Result<Vec<UsageGroupRow>> {
        let mut params = params![query.from, query.until];
        let mut sql = "SELECT DISTINCT g.id, g.name, g.domain_name FROM kernels k JOIN \"groups\" g ON g.id = k.group_id \
                       WHERE k.terminated_at >= $1 AND k.terminated_at < $2"
            .to_owned();
        restrict_to_groups(&mut sql, &mut params, &query.groups);
        sql += " ORDER BY g.domain_name, g.name";
        self.list(sql, params, |row| {
            Ok(UsageGroupRow {
                id: row.get("id")?,
                name: row.get("name")?,
                domain_name: row.get("domain_name")?,
            })
        })
        .await
    }

    /// At most `limit` kernels in the order in which they ended, those after `after` (the last row of the page before).
    /// A page that is not full is the last one.
    pub async fn usage_page(
        &self,
        query: &UsageQuery,
        after: Option<&UsageRow>,
        limit: u16,
    ) -> Result<Vec<UsageRow>> {
        let mut params = params![query.from, query.until, i64::from(limit)];
        let mut sql = "SELECT k.id, k.sess_id, k.access_key, k.group_id, g.name AS group_name, g.domain_name, k.image, \
                       k.occupied_slots, k.last_stat, k.created_at, k.terminated_at \
                       FROM kernels k JOIN \"groups\" g ON g.id = k.group_id \
                       WHERE k.terminated_at >= $1 AND k.terminated_at < $2"
            .to_owned();
        if let Some(row) = after {
            params.extend([Param::from(row.terminated_at), Param::from(row.id)]);
            sql += " AND (k.terminated_at, k.id) > ($4, $5)";
        }
        restrict_to_groups(&mut sql, &mut params, &query.groups);
        sql += " ORDER BY k.terminated_at, k.id LIMIT $3";
        self.list(sql, params, read).await
    }
}
