-- What the original does not have: tables of our own (bai_*) and indexes. It ignores both.

CREATE TABLE bai_schema_version (
    version INTEGER NOT NULL,
    CONSTRAINT pk_bai_schema_version PRIMARY KEY (version)
) STRICT;

-- Occupancy is summed over live kernels at every creation and termination. There are no indexes of the same columns over
-- all kernels: SQLite would prefer those and read the whole history.
CREATE INDEX bai_ix_kernels_live_access_key ON kernels (access_key, role) WHERE status <> 'TERMINATED';
CREATE INDEX bai_ix_kernels_live_group_id ON kernels (group_id) WHERE status <> 'TERMINATED';
CREATE INDEX bai_ix_kernels_live_domain_name ON kernels (domain_name) WHERE status <> 'TERMINATED';
CREATE INDEX bai_ix_kernels_live_agent ON kernels (agent) WHERE status <> 'TERMINATED';

-- Lists of sessions, newest first.
CREATE INDEX bai_ix_kernels_master_access_key_created_at ON kernels (access_key, created_at DESC) WHERE role = 'master';

-- Columns that refer to other tables.
CREATE INDEX bai_ix_keypairs_user ON keypairs ("user");
CREATE INDEX bai_ix_keypairs_resource_policy ON keypairs (resource_policy);
CREATE INDEX bai_ix_kernels_user_uuid ON kernels (user_uuid);
CREATE INDEX bai_ix_association_groups_users_group_id ON association_groups_users (group_id);
CREATE INDEX bai_ix_vfolders_user ON vfolders ("user");
CREATE INDEX bai_ix_vfolders_group ON vfolders ("group");
CREATE INDEX bai_ix_vfolder_attachment_kernel ON vfolder_attachment (kernel);
CREATE INDEX bai_ix_vfolder_permissions_user ON vfolder_permissions ("user");
CREATE INDEX bai_ix_vfolder_permissions_vfolder ON vfolder_permissions (vfolder);
CREATE INDEX bai_ix_vfolder_invitations_invitee ON vfolder_invitations (invitee);
CREATE INDEX bai_ix_vfolder_invitations_vfolder ON vfolder_invitations (vfolder);
