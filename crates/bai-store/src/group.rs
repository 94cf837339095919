//! Groups, also called projects, and their members (`data-model.md` 6, 15.1).

use bai_model::{GroupId, ResourceSlot, UserId};
use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// A group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupRow {
    /// The key.
    pub id: GroupId,
    /// Unique within the domain.
    pub name: String,
    /// The domain it belongs to.
    pub domain_name: String,
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
    /// Folder hosts that its members may use.
    pub allowed_vfolder_hosts: Vec<String>,
    /// Stored only.
    pub integration_id: Option<String>,
}

/// A group to be added, active.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// The key.
    pub id: GroupId,
    /// Unique within the domain.
    pub name: String,
    /// The domain it belongs to.
    pub domain_name: String,
    /// Shown only.
    pub description: Option<String>,
    /// The quota.
    pub total_resource_slots: ResourceSlot,
    /// Folder hosts that its members may use.
    pub allowed_vfolder_hosts: Vec<String>,
}

fn read(row: &Row) -> Result<GroupRow> {
    Ok(GroupRow {
        id: row.get("id")?,
        name: row.get("name")?,
        domain_name: row.get("domain_name")?,
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
    /// The group with this key, active or not.
    pub async fn group_by_id(&self, group: GroupId) -> Result<Option<GroupRow>> {
        let sql = "SELECT id, name, domain_name, description, is_active, created_at, modified_at, \
                   total_resource_slots, allowed_vfolder_hosts, integration_id FROM \"groups\" WHERE id = $1";
        self.first(sql, params![group], read).await
    }

    /// The active group of that name in that active domain (DM-46), of which `member` is a member if given.
    pub async fn group_for_session(
        &self,
        name: &str,
        domain: &str,
        member: Option<UserId>,
    ) -> Result<Option<GroupRow>> {
        let sql = "SELECT g.id, g.name, g.domain_name, g.description, g.is_active, g.created_at, g.modified_at, \
                   g.total_resource_slots, g.allowed_vfolder_hosts, g.integration_id \
                   FROM \"groups\" g JOIN domains d ON d.name = g.domain_name \
                   WHERE g.name = $1 AND g.domain_name = $2 AND g.is_active = $4 AND d.is_active = $4 \
                   AND ($3 IS NULL OR EXISTS (SELECT 1 FROM association_groups_users a \
                   WHERE a.group_id = g.id AND a.user_id = $3))";
        self.first(sql, params![name, domain, member, true], read).await
    }
}

impl Tx {
    /// Adds a group without members.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_groups`, `uq_groups_name_domain_name` or for a missing domain,
    /// [`crate::Error::TooLong`].
    pub async fn insert_group(&mut self, group: &NewGroup, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("id", group.id.into()),
            ("name", (&group.name).into()),
            ("description", group.description.as_deref().into()),
            ("is_active", true.into()),
            ("created_at", at.into()),
            ("modified_at", at.into()),
            ("domain_name", (&group.domain_name).into()),
            ("total_resource_slots", (&group.total_resource_slots).into()),
            ("allowed_vfolder_hosts", (&group.allowed_vfolder_hosts).into()),
        ];
        self.insert("groups", values, "").await?;
        Ok(())
    }

    /// Makes a user a member of a group. Answers false for one who is already.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] for a missing user or group.
    pub async fn add_user_to_group(&mut self, user: UserId, group: GroupId) -> Result<bool> {
        let values = vec![("user_id", user.into()), ("group_id", group.into())];
        let unless_member = "ON CONFLICT (user_id, group_id) DO NOTHING";
        self.insert("association_groups_users", values, unless_member)
            .await
    }
}
