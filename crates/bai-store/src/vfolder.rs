//! Virtual folders: who may use which (`data-model.md` 17.2) and which ones a kernel has (`vfolder_attachment`).

use bai_model::{GroupId, KernelId, UserId, VFolderId, VFolderPermission};
use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// A folder as somebody may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct VFolderRow {
    /// The key, and the folder's name on its host.
    pub id: VFolderId,
    /// Where it is.
    pub host: String,
    /// How its users call it.
    pub name: String,
    /// The owner, unless it is a group's.
    pub user: Option<UserId>,
    /// The group, unless it is a user's.
    pub group: Option<GroupId>,
    /// Stored only.
    pub max_files: Option<i64>,
    /// Stored only, in KiB.
    pub max_size: Option<i64>,
    /// Stored only.
    pub num_files: Option<i64>,
    /// Stored only.
    pub cur_size: Option<i64>,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// Never written by 19.06.
    pub last_used: Option<DateTime<Utc>>,
    /// Whether it is the user's own, or the user administers it.
    pub is_owner: bool,
    /// What the user may do with it.
    pub permission: VFolderPermission,
}

/// A folder to be added, of a user or of a group.
#[derive(Clone, Debug)]
pub struct NewVFolder {
    /// The key.
    pub id: VFolderId,
    /// Where it is.
    pub host: String,
    /// How its users call it.
    pub name: String,
    /// The owner, unless it is a group's.
    pub user: Option<UserId>,
    /// The group, unless it is a user's.
    pub group: Option<GroupId>,
}

fn read(row: &Row) -> Result<VFolderRow> {
    Ok(VFolderRow {
        id: row.get("id")?,
        host: row.get("host")?,
        name: row.get("name")?,
        user: row.opt("user")?,
        group: row.opt("group")?,
        max_files: row.opt("max_files")?,
        max_size: row.opt("max_size")?,
        num_files: row.opt("num_files")?,
        cur_size: row.opt("cur_size")?,
        created_at: row.opt("created_at")?,
        last_used: row.opt("last_used")?,
        is_owner: row.get::<i64>("is_owner")? != 0,
        permission: row.get("permission")?,
    })
}

/// The folders accessible to the user that the expression `$user` gives, among those that `$condition` selects: own
/// ones, shared ones with the strongest of their permissions (DM-30: the names of permissions sort by strength), those
/// of the user's groups.
macro_rules! accessible {
    ($user:literal, $condition:literal) => {
        concat!(
            "WITH me AS (SELECT uuid, role FROM users WHERE uuid = ", $user, "), \
             accessible (id, source, is_owner, permission) AS (\
             SELECT v.id, 1, 1, 'wd' FROM vfolders v JOIN me ON v.\"user\" = me.uuid \
             UNION ALL \
             SELECT p.vfolder, 2, 0, max(cast(p.permission AS text)) FROM vfolder_permissions p \
             JOIN me ON p.\"user\" = me.uuid WHERE p.permission IS NOT NULL GROUP BY p.vfolder \
             UNION ALL \
             SELECT v.id, 3, CASE WHEN me.role = 'admin' THEN 1 ELSE 0 END, \
             CASE WHEN me.role = 'admin' THEN 'wd' ELSE 'rw' END FROM vfolders v \
             JOIN association_groups_users a ON a.group_id = v.\"group\" JOIN me ON a.user_id = me.uuid) \
             SELECT v.id, v.host, v.name, v.\"user\", v.\"group\", v.max_files, v.max_size, v.num_files, v.cur_size, \
             v.created_at, v.last_used, accessible.is_owner, accessible.permission \
             FROM accessible JOIN vfolders v ON v.id = accessible.id ",
            $condition,
            " ORDER BY accessible.source, v.created_at, v.id"
        )
    };
}

impl Reader {
    /// The folders that a user may use: own ones, shared ones, those of the user's groups, in this order. A folder that
    /// is accessible in two ways is there twice.
    pub async fn accessible_vfolders(&self, user: UserId) -> Result<Vec<VFolderRow>> {
        self.list(accessible!("$1", ""), params![user], read).await
    }

    /// The folders attached to a kernel that its user may still use, each once with the strongest permission.
    pub async fn mounts_of_kernel(&self, kernel: KernelId) -> Result<Vec<VFolderRow>> {
        let sql = accessible!(
            "(SELECT user_uuid FROM kernels WHERE id = $1)",
            "JOIN vfolder_attachment t ON t.vfolder = v.id WHERE t.kernel = $1"
        );
        let mounts = self.list(sql, params![kernel], read).await?;
        Ok(each_with_its_strongest_permission(mounts.into_iter()))
    }
}

/// Folders that may be there twice, because they are accessible in two ways, once each.
pub fn each_with_its_strongest_permission(folders: impl Iterator<Item = VFolderRow>) -> Vec<VFolderRow> {
    let mut each: Vec<VFolderRow> = Vec::new();
    for folder in folders {
        match each.iter_mut().find(|seen| seen.id == folder.id) {
            Some(seen) => seen.permission = seen.permission.max(folder.permission),
            None => each.push(folder),
        }
    }
    each
}

impl Tx {
    /// Adds a folder with the defaults of `data-model.md` 4.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_vfolders` or for a missing user or group, [`crate::Error::TooLong`].
    pub async fn insert_vfolder(&mut self, folder: &NewVFolder, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("id", folder.id.into()),
            ("host", (&folder.host).into()),
            ("name", (&folder.name).into()),
            ("max_files", 1000.into()),
            ("max_size", 1_048_576.into()),
            ("num_files", 0.into()),
            ("cur_size", 0.into()),
            ("created_at", at.into()),
            ("user", folder.user.into()),
            ("group", folder.group.into()),
        ];
        self.insert("vfolders", values, "").await?;
        Ok(())
    }

    /// Shares a folder with a user.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] for a missing folder or user.
    pub async fn share_vfolder(
        &mut self,
        folder: VFolderId,
        user: UserId,
        permission: VFolderPermission,
    ) -> Result<()> {
        let values = vec![
            ("vfolder", folder.into()),
            ("user", user.into()),
            ("permission", permission.into()),
        ];
        self.insert("vfolder_permissions", values, "").await?;
        Ok(())
    }

    /// Records which folders a kernel has.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] for a missing kernel or folder.
    pub async fn attach_vfolders(&mut self, kernel: KernelId, folders: &[VFolderId]) -> Result<()> {
        for folder in folders {
            let values = vec![("vfolder", (*folder).into()), ("kernel", kernel.into())];
            self.insert(
                "vfolder_attachment",
                values,
                "ON CONFLICT (vfolder, kernel) DO NOTHING",
            )
            .await?;
        }
        Ok(())
    }
}
