//! Our indexes on PostgreSQL (`data-model.md` 21), which are made beside running work and not within a migration. A test
//! compares them with those of SQLite's migrations.

/// Name, and what follows it in `CREATE INDEX`.
pub(super) const INDEXES: &[(&str, &str)] = &[
    // Occupancy is summed over live kernels at every creation and termination. There is one index for all sums, with a
    // condition of its own: see `crate::kernel::is_live`.
    (
        "bai_ix_kernels_live",
        "ON kernels (agent) WHERE status IN ('PREPARING', 'BUILDING', 'RUNNING', 'RESTARTING', 'RESIZING', 'SUSPENDED', \
         'TERMINATING', 'ERROR')",
    ),
    // Kernels that were given up with their agent are looked for when it is back.
    (
        "bai_ix_kernels_left_behind",
        "ON kernels (agent, terminated_at DESC) WHERE status = 'TERMINATED' AND status_info = 'agent-lost'",
    ),
    // Lists of sessions, newest first.
    (
        "bai_ix_kernels_master_access_key_created_at",
        "ON kernels (access_key, created_at DESC) WHERE role = 'master'",
    ),
    // Columns that refer to other tables.
    ("bai_ix_keypairs_user", "ON keypairs (\"user\")"),
    ("bai_ix_keypairs_resource_policy", "ON keypairs (resource_policy)"),
    ("bai_ix_kernels_user_uuid", "ON kernels (user_uuid)"),
    (
        "bai_ix_association_groups_users_group_id",
        "ON association_groups_users (group_id)",
    ),
    ("bai_ix_vfolders_user", "ON vfolders (\"user\")"),
    ("bai_ix_vfolders_group", "ON vfolders (\"group\")"),
    (
        "bai_ix_vfolder_attachment_kernel",
        "ON vfolder_attachment (kernel)",
    ),
    (
        "bai_ix_vfolder_permissions_user",
        "ON vfolder_permissions (\"user\")",
    ),
    (
        "bai_ix_vfolder_permissions_vfolder",
        "ON vfolder_permissions (vfolder)",
    ),
    (
        "bai_ix_vfolder_invitations_invitee",
        "ON vfolder_invitations (invitee)",
    ),
    (
        "bai_ix_vfolder_invitations_vfolder",
        "ON vfolder_invitations (vfolder)",
    ),
];
