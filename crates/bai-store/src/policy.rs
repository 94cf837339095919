//! Keypair resource policies (`data-model.md` 6, 15.1).

use bai_model::{AccessKey, KeypairResourcePolicy};
use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// The policy whose columns a row has beside others, its name as `policy_name`.
pub(crate) fn read_policy(row: &Row) -> Result<KeypairResourcePolicy> {
    Ok(KeypairResourcePolicy {
        name: row.get("policy_name")?,
        default_for_unspecified: row.get("default_for_unspecified")?,
        total_resource_slots: row.opt("total_resource_slots")?.unwrap_or_default(),
        max_concurrent_sessions: row.get("max_concurrent_sessions")?,
        max_containers_per_session: row.get("max_containers_per_session")?,
        max_vfolder_count: row.get("max_vfolder_count")?,
        max_vfolder_size: row.get("max_vfolder_size")?,
        idle_timeout: row.get("idle_timeout")?,
        allowed_vfolder_hosts: row.get("allowed_vfolder_hosts")?,
    })
}

/// The columns that [`read_policy`] wants, of `keypair_resource_policies AS p`.
macro_rules! policy_columns {
    () => {
        "p.name AS policy_name, p.default_for_unspecified, p.total_resource_slots, p.max_concurrent_sessions, \
         p.max_containers_per_session, p.max_vfolder_count, p.max_vfolder_size, p.idle_timeout, \
         p.allowed_vfolder_hosts"
    };
}
pub(crate) use policy_columns;

impl Reader {
    /// The policy that limits a keypair.
    pub async fn policy_of_keypair(&self, access_key: &AccessKey) -> Result<Option<KeypairResourcePolicy>> {
        let sql = concat!(
            "SELECT ",
            policy_columns!(),
            " FROM keypairs k JOIN keypair_resource_policies p ON p.name = k.resource_policy WHERE k.access_key = $1"
        );
        self.first(sql, params![access_key], read_policy).await
    }
}

impl Tx {
    /// Adds a policy.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_keypair_resource_policies`, [`crate::Error::TooLong`].
    pub async fn insert_policy(&mut self, policy: &KeypairResourcePolicy, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("name", (&policy.name).into()),
            ("created_at", at.into()),
            ("default_for_unspecified", policy.default_for_unspecified.into()),
            ("total_resource_slots", (&policy.total_resource_slots).into()),
            ("max_concurrent_sessions", policy.max_concurrent_sessions.into()),
            (
                "max_containers_per_session",
                policy.max_containers_per_session.into(),
            ),
            ("max_vfolder_count", policy.max_vfolder_count.into()),
            ("max_vfolder_size", policy.max_vfolder_size.into()),
            ("idle_timeout", policy.idle_timeout.into()),
            ("allowed_vfolder_hosts", (&policy.allowed_vfolder_hosts).into()),
        ];
        self.insert("keypair_resource_policies", values, "").await?;
        Ok(())
    }
}
