//! Domains, the upper level of tenancy (`data-model.md` 6, 15.1).

use bai_model::ResourceSlot;
use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// A domain.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainRow {
    /// The key.
    pub name: String,
    /// Shown only.
    pub description: Option<String>,
    /// Sessions are created only where this is true.
    pub is_active: Option<bool>,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it was last changed.
    pub modified_at: Option<DateTime<Utc>>,
    /// The quota; what it does not name is unlimited.
    pub total_resource_slots: ResourceSlot,
    /// Folder hosts that its users may use.
    pub allowed_vfolder_hosts: Vec<String>,
    /// Stored only.
    pub integration_id: Option<String>,
}

/// A domain to be added, active.
#[derive(Clone, Debug)]
pub struct NewDomain {
    /// The key.
    pub name: String,
    /// Shown only.
    pub description: Option<String>,
    /// The quota.
    pub total_resource_slots: ResourceSlot,
    /// Folder hosts that its users may use.
    pub allowed_vfolder_hosts: Vec<String>,
}

fn read(row: &Row) -> Result<DomainRow> {
    Ok(DomainRow {
        name: row.get("name")?,
        description: row.opt("description")?,
        is_active: row.opt("is_active")?,
        created_at: row.opt("created_at")?,
        modified_at: row.opt("modified_at")?,
        total_resource_slots: row.opt("total_resource_slots")?.unwrap_or_default(),
        allowed_vfolder_hosts: row.get("allowed_vfolder_hosts")?,
        integration_id: row.opt("integration_id")?,
    })
}

impl Reader {
    /// The domain of this name, active or not.
    pub async fn domain(&self, name: &str) -> Result<Option<DomainRow>> {
        let sql = "SELECT name, description, is_active, created_at, modified_at, total_resource_slots, \
                   allowed_vfolder_hosts, integration_id FROM domains WHERE name = $1";
        self.first(sql, params![name], read).await
    }
}

impl Tx {
    /// Adds a domain.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_domains`, [`crate::Error::TooLong`].
    pub async fn insert_domain(&mut self, domain: &NewDomain, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("name", (&domain.name).into()),
            ("description", domain.description.as_deref().into()),
            ("is_active", true.into()),
            ("created_at", at.into()),
            ("modified_at", at.into()),
            ("total_resource_slots", (&domain.total_resource_slots).into()),
            ("allowed_vfolder_hosts", (&domain.allowed_vfolder_hosts).into()),
        ];
        self.insert("domains", values, "").await?;
        Ok(())
    }
}
