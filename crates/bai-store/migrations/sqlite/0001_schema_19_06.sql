-- The schema of Backend.AI manager 19.06 (alembic head c401d78cc7b9) in SQLite's types: enums, JSON, arrays, UUIDs and
-- timestamps are text, booleans are 0, 1 or NULL. Lengths are checked by the application, which also supplies times and
-- ids. Names of constraints and indexes are the original's.

CREATE TABLE alembic_version (
    version_num TEXT NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
) STRICT;
INSERT INTO alembic_version (version_num) VALUES ('c401d78cc7b9');

CREATE TABLE agents (
    id TEXT NOT NULL,
    status TEXT NOT NULL,
    region TEXT NOT NULL,
    available_slots TEXT NOT NULL,
    occupied_slots TEXT NOT NULL,
    addr TEXT NOT NULL,
    first_contact TEXT,
    lost_at TEXT,
    version TEXT NOT NULL,
    compute_plugins TEXT NOT NULL,
    CONSTRAINT pk_agents PRIMARY KEY (id)
) STRICT;
CREATE INDEX ix_agents_region ON agents (region);
CREATE INDEX ix_agents_status ON agents (status);

CREATE TABLE domains (
    name TEXT NOT NULL,
    description TEXT,
    is_active INTEGER,
    created_at TEXT,
    modified_at TEXT,
    total_resource_slots TEXT,
    allowed_vfolder_hosts TEXT NOT NULL,
    integration_id TEXT,
    CONSTRAINT pk_domains PRIMARY KEY (name)
) STRICT;

CREATE TABLE "groups" (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    is_active INTEGER,
    created_at TEXT,
    modified_at TEXT,
    integration_id TEXT,
    domain_name TEXT NOT NULL,
    total_resource_slots TEXT,
    allowed_vfolder_hosts TEXT NOT NULL,
    CONSTRAINT pk_groups PRIMARY KEY (id),
    CONSTRAINT uq_groups_name_domain_name UNIQUE (name, domain_name),
    CONSTRAINT fk_groups_domain_name_domains FOREIGN KEY (domain_name)
        REFERENCES domains (name) ON UPDATE CASCADE ON DELETE CASCADE
) STRICT;
CREATE INDEX ix_groups_domain_name ON "groups" (domain_name);

CREATE TABLE users (
    uuid TEXT NOT NULL,
    username TEXT,
    email TEXT NOT NULL,
    password TEXT,
    need_password_change INTEGER,
    full_name TEXT,
    description TEXT,
    is_active INTEGER,
    created_at TEXT,
    integration_id TEXT,
    domain_name TEXT,
    role TEXT,
    CONSTRAINT pk_users PRIMARY KEY (uuid),
    CONSTRAINT uq_users_username UNIQUE (username),
    CONSTRAINT fk_users_domain_name_domains FOREIGN KEY (domain_name) REFERENCES domains (name)
) STRICT;
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_domain_name ON users (domain_name);

CREATE TABLE association_groups_users (
    user_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    CONSTRAINT uq_association_user_id_group_id UNIQUE (user_id, group_id),
    CONSTRAINT fk_association_groups_users_group_id_groups FOREIGN KEY (group_id)
        REFERENCES "groups" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_association_groups_users_user_id_users FOREIGN KEY (user_id)
        REFERENCES users (uuid) ON UPDATE CASCADE ON DELETE CASCADE
) STRICT;

CREATE TABLE keypair_resource_policies (
    name TEXT NOT NULL,
    created_at TEXT,
    default_for_unspecified TEXT NOT NULL,
    total_resource_slots TEXT NOT NULL,
    max_concurrent_sessions INTEGER NOT NULL,
    max_containers_per_session INTEGER NOT NULL,
    max_vfolder_count INTEGER NOT NULL,
    max_vfolder_size INTEGER NOT NULL,
    idle_timeout INTEGER NOT NULL,
    allowed_vfolder_hosts TEXT NOT NULL,
    CONSTRAINT pk_keypair_resource_policies PRIMARY KEY (name)
) STRICT;

CREATE TABLE keypairs (
    user_id TEXT,
    access_key TEXT NOT NULL,
    secret_key TEXT,
    is_active INTEGER,
    is_admin INTEGER DEFAULT 0,
    created_at TEXT,
    last_used TEXT,
    concurrency_used INTEGER,
    rate_limit INTEGER,
    num_queries INTEGER DEFAULT 0,
    "user" TEXT NOT NULL,
    resource_policy TEXT NOT NULL,
    CONSTRAINT pk_keypairs PRIMARY KEY (access_key),
    CONSTRAINT fk_keypairs_user_users FOREIGN KEY ("user") REFERENCES users (uuid),
    CONSTRAINT fk_keypairs_resource_policy_keypair_resource_policies FOREIGN KEY (resource_policy)
        REFERENCES keypair_resource_policies (name)
) STRICT;
CREATE INDEX ix_keypairs_is_active ON keypairs (is_active);
CREATE INDEX ix_keypairs_is_admin ON keypairs (is_admin);
CREATE INDEX ix_keypairs_user_id ON keypairs (user_id);

CREATE TABLE kernels (
    id TEXT NOT NULL,
    sess_id TEXT,
    role TEXT NOT NULL,
    agent TEXT,
    agent_addr TEXT NOT NULL,
    domain_name TEXT NOT NULL,
    group_id TEXT NOT NULL,
    user_uuid TEXT NOT NULL,
    access_key TEXT,
    image TEXT,
    registry TEXT,
    tag TEXT,
    container_id TEXT,
    occupied_slots TEXT NOT NULL,
    occupied_shares TEXT NOT NULL,
    environ TEXT,
    kernel_host TEXT,
    repl_in_port INTEGER NOT NULL,
    repl_out_port INTEGER NOT NULL,
    stdin_port INTEGER NOT NULL,
    stdout_port INTEGER NOT NULL,
    service_ports TEXT,
    created_at TEXT,
    terminated_at TEXT,
    status TEXT,
    status_info TEXT,
    num_queries INTEGER,
    last_stat TEXT,
    CONSTRAINT pk_kernels PRIMARY KEY (id),
    CONSTRAINT fk_kernels_agent_agents FOREIGN KEY (agent) REFERENCES agents (id),
    CONSTRAINT fk_kernels_domain_name_domains FOREIGN KEY (domain_name) REFERENCES domains (name),
    CONSTRAINT fk_kernels_group_id_groups FOREIGN KEY (group_id) REFERENCES "groups" (id),
    CONSTRAINT fk_kernels_user_uuid_users FOREIGN KEY (user_uuid) REFERENCES users (uuid),
    CONSTRAINT fk_kernels_access_key_keypairs FOREIGN KEY (access_key) REFERENCES keypairs (access_key)
) STRICT;
CREATE INDEX ix_kernels_created_at ON kernels (created_at);
CREATE INDEX ix_kernels_sess_id ON kernels (sess_id);
CREATE INDEX ix_kernels_sess_id_role ON kernels (sess_id, role);
CREATE INDEX ix_kernels_status ON kernels (status);
CREATE INDEX ix_kernels_terminated_at ON kernels (terminated_at);
CREATE UNIQUE INDEX ix_kernels_unique_sess_token ON kernels (access_key, sess_id)
    WHERE status != 'TERMINATED' AND role = 'master';

CREATE TABLE resource_presets (
    name TEXT NOT NULL,
    resource_slots TEXT NOT NULL,
    CONSTRAINT pk_resource_presets PRIMARY KEY (name)
) STRICT;

CREATE TABLE vfolders (
    id TEXT NOT NULL,
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    max_files INTEGER,
    max_size INTEGER,
    num_files INTEGER,
    cur_size INTEGER,
    created_at TEXT,
    last_used TEXT,
    "user" TEXT,
    "group" TEXT,
    CONSTRAINT pk_vfolders PRIMARY KEY (id),
    CONSTRAINT fk_vfolders_user_users FOREIGN KEY ("user") REFERENCES users (uuid),
    CONSTRAINT fk_vfolders_group_groups FOREIGN KEY ("group") REFERENCES "groups" (id)
) STRICT;

CREATE TABLE vfolder_attachment (
    vfolder TEXT NOT NULL,
    kernel TEXT NOT NULL,
    CONSTRAINT pk_vfolder_attachment PRIMARY KEY (vfolder, kernel),
    CONSTRAINT fk_vfolder_attachment_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_vfolder_attachment_kernel_kernels FOREIGN KEY (kernel)
        REFERENCES kernels (id) ON UPDATE CASCADE ON DELETE CASCADE
) STRICT;

CREATE TABLE vfolder_invitations (
    id TEXT NOT NULL,
    permission TEXT,
    inviter TEXT,
    invitee TEXT NOT NULL,
    state TEXT,
    created_at TEXT,
    vfolder TEXT NOT NULL,
    CONSTRAINT pk_vfolder_invitations PRIMARY KEY (id),
    CONSTRAINT fk_vfolder_invitations_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE
) STRICT;

CREATE TABLE vfolder_permissions (
    permission TEXT,
    vfolder TEXT NOT NULL,
    "user" TEXT NOT NULL,
    CONSTRAINT fk_vfolder_permissions_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_vfolder_permissions_user_users FOREIGN KEY ("user") REFERENCES users (uuid)
) STRICT;
