//! Keypairs and their usage counters (`data-model.md` 6, 7.2, 8.1).
//!
//! Not here: `concurrency_used`, which moves with the kernels it counts (`kernel`, `accounting`).

use bai_model::{AccessKey, SecretKey, UserId};
use chrono::{DateTime, Utc};

use crate::driver::{Param, Row, params};
use crate::store::places;
use crate::{Reader, Result, Tx};

/// How many keypairs one statement of [`Tx::record_usage`] counts.
const BATCH: usize = 100;
/// The largest value of `keypairs.num_queries`, a 32-bit column.
const MAX_QUERIES: i64 = i32::MAX as i64;

/// A keypair.
#[derive(Clone, Debug)]
pub struct KeypairRow {
    /// The public half.
    pub access_key: AccessKey,
    /// The secret half, never empty.
    pub secret_key: SecretKey,
    /// The owner's e-mail address as 19.06 copies it.
    pub user_id: Option<String>,
    /// The owner.
    pub user: UserId,
    /// NULL counts as inactive.
    pub is_active: Option<bool>,
    /// NULL counts as no.
    pub is_admin: bool,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// The latest request signed with it, up to a second ago.
    pub last_used: Option<DateTime<Utc>>,
    /// The stored counter of live kernels; decisions count the rows instead.
    pub concurrency_used: i64,
    /// Requests in 15 minutes.
    pub rate_limit: Option<i64>,
    /// Requests signed with it.
    pub num_queries: i64,
    /// The name of its policy.
    pub resource_policy: String,
}

/// A keypair to be added.
#[derive(Clone, Debug)]
pub struct NewKeypair {
    /// The public half.
    pub access_key: AccessKey,
    /// The secret half.
    pub secret_key: SecretKey,
    /// The owner's e-mail address, which becomes `keypairs.user_id`.
    pub email: String,
    /// The owner.
    pub user: UserId,
    /// Whether it can be used.
    pub is_active: bool,
    /// Whether it is an administrator's.
    pub is_admin: bool,
    /// Requests in 15 minutes.
    pub rate_limit: Option<i64>,
    /// The name of its policy.
    pub resource_policy: String,
}

fn read(row: &Row) -> Result<KeypairRow> {
    Ok(KeypairRow {
        access_key: row.get("access_key")?,
        secret_key: row.get("secret_key")?,
        user_id: row.opt("user_id")?,
        user: row.get("user")?,
        is_active: row.opt("is_active")?,
        is_admin: row.opt("is_admin")?.unwrap_or(false),
        created_at: row.opt("created_at")?,
        last_used: row.opt("last_used")?,
        concurrency_used: row.opt("concurrency_used")?.unwrap_or(0),
        rate_limit: row.opt("rate_limit")?,
        num_queries: row.opt("num_queries")?.unwrap_or(0),
        resource_policy: row.get("resource_policy")?,
    })
}

impl Reader {
    /// The keypairs of a user that have a secret, oldest first.
    pub async fn keypairs_of_user(&self, user: UserId) -> Result<Vec<KeypairRow>> {
        let sql = "SELECT access_key, secret_key, user_id, \"user\", is_active, is_admin, created_at, last_used, \
                   concurrency_used, rate_limit, num_queries, resource_policy \
                   FROM keypairs WHERE \"user\" = $1 AND secret_key <> '' \
                   ORDER BY created_at IS NULL, created_at, access_key";
        self.list(sql, params![user], read).await
    }
}

impl Tx {
    /// Adds a keypair.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_keypairs` or for a missing user or policy, [`crate::Error::TooLong`].
    pub async fn insert_keypair(&mut self, keypair: &NewKeypair, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("access_key", (&keypair.access_key).into()),
            ("secret_key", keypair.secret_key.expose().into()),
            ("user_id", (&keypair.email).into()),
            ("user", keypair.user.into()),
            ("is_active", keypair.is_active.into()),
            ("is_admin", keypair.is_admin.into()),
            ("created_at", at.into()),
            ("last_used", None::<DateTime<Utc>>.into()),
            ("concurrency_used", 0.into()),
            ("rate_limit", keypair.rate_limit.into()),
            ("num_queries", 0.into()),
            ("resource_policy", (&keypair.resource_policy).into()),
        ];
        self.insert("keypairs", values, "").await?;
        Ok(())
    }

    /// Adds to the counters of each keypair the number of requests, and moves `last_used` forward. Each key may occur
    /// once; unknown ones are nothing.
    pub async fn record_usage(&mut self, usage: &[(AccessKey, i64, DateTime<Utc>)]) -> Result<()> {
        let mut usage: Vec<_> = usage.iter().collect();
        usage.sort_by(|(one, ..), (other, ..)| one.as_str().cmp(other.as_str()));
        for batch in usage.chunks(BATCH) {
            let keys: Vec<Param> = batch.iter().map(|(key, ..)| key.into()).collect();
            let these = places(1, keys.len());
            self.lock_keypairs(&format!("WHERE access_key IN {these}"), keys)
                .await?;
            let params: Vec<Param> = batch
                .iter()
                .flat_map(|(key, count, at)| [key.into(), (*count).into(), (*at).into()])
                .collect();
            let sql = format!(
                "WITH used (access_key, count, at) AS (VALUES {}) \
                 UPDATE keypairs SET \
                 num_queries = CASE WHEN coalesce(num_queries, 0) + used.count > {MAX_QUERIES} THEN {MAX_QUERIES} \
                 ELSE coalesce(num_queries, 0) + used.count END, \
                 last_used = CASE WHEN last_used > used.at THEN last_used ELSE used.at END \
                 FROM used WHERE keypairs.access_key = used.access_key",
                places(batch.len(), 3)
            );
            self.execute(sql, params).await?;
        }
        Ok(())
    }

    /// Counts so many more sessions at keypairs, which are in the order of their names.
    pub(crate) async fn add_to_concurrency(&mut self, sessions: &[(&AccessKey, i64)]) -> Result<()> {
        for batch in sessions.chunks(BATCH) {
            if batch.len() > 1 {
                let keys: Vec<Param> = batch.iter().map(|(key, _)| (*key).into()).collect();
                let these = places(1, keys.len());
                self.lock_keypairs(&format!("WHERE access_key IN {these}"), keys)
                    .await?;
            }
            let params = batch
                .iter()
                .flat_map(|(key, count)| [(*key).into(), (*count).into()])
                .collect();
            let sql = format!(
                "WITH added (access_key, count) AS (VALUES {}) \
                 UPDATE keypairs SET concurrency_used = coalesce(concurrency_used, 0) + added.count \
                 FROM added WHERE keypairs.access_key = added.access_key",
                places(batch.len(), 2)
            );
            self.execute(sql, params).await?;
        }
        Ok(())
    }

    /// Keeps the keypairs that `condition` selects from being changed by others until the unit of work ends. Everybody who
    /// needs several locks them in this order, or two would wait for each other.
    pub(crate) async fn lock_keypairs(&mut self, condition: &str, params: Vec<Param>) -> Result<()> {
        let for_update = self.for_update();
        if for_update.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT access_key FROM keypairs {condition} ORDER BY access_key COLLATE \"C\"{for_update}"
        );
        self.fetch(sql, params).await?;
        Ok(())
    }
}
