-- The schema of Backend.AI manager 19.06 (alembic head c401d78cc7b9) as its own one-shot installation makes it: a test
-- compares the catalogue with that of a database that the original made. Nothing of ours belongs here.

CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TYPE agentstatus AS ENUM ('ALIVE','LOST','RESTARTING','TERMINATED');
CREATE TYPE defaultforunspecified AS ENUM ('LIMITED','UNLIMITED');
CREATE TYPE kernelstatus AS ENUM ('PREPARING','BUILDING','RUNNING','RESTARTING','RESIZING','SUSPENDED','TERMINATING','TERMINATED','ERROR');
CREATE TYPE userrole AS ENUM ('superadmin','admin','user','monitor');
CREATE TYPE vfolderpermission AS ENUM ('ro','rw','wd');

CREATE TABLE alembic_version (
    version_num varchar(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version (version_num) VALUES ('c401d78cc7b9');

CREATE TABLE agents (
    id               varchar(64)  NOT NULL,
    status           agentstatus  NOT NULL,
    region           varchar(64)  NOT NULL,
    available_slots  jsonb        NOT NULL,
    occupied_slots   jsonb        NOT NULL,
    addr             varchar(128) NOT NULL,
    first_contact    timestamptz  DEFAULT now(),
    lost_at          timestamptz,
    version          varchar(64)  NOT NULL,
    compute_plugins  jsonb        NOT NULL,
    CONSTRAINT pk_agents PRIMARY KEY (id)
);
CREATE INDEX ix_agents_region ON agents (region);
CREATE INDEX ix_agents_status ON agents (status);

CREATE TABLE domains (
    name                   varchar(64)  NOT NULL,
    description            varchar(512),
    is_active              boolean,
    created_at             timestamptz  DEFAULT now(),
    modified_at            timestamptz  DEFAULT now(),
    total_resource_slots   jsonb,
    allowed_vfolder_hosts  varchar[]    NOT NULL,
    integration_id         varchar(512),
    CONSTRAINT pk_domains PRIMARY KEY (name)
);

CREATE TABLE groups (
    id                     uuid         DEFAULT uuid_generate_v4() NOT NULL,
    name                   varchar(64)  NOT NULL,
    description            varchar(512),
    is_active              boolean,
    created_at             timestamptz  DEFAULT now(),
    modified_at            timestamptz  DEFAULT now(),
    integration_id         varchar(512),
    domain_name            varchar(64)  NOT NULL,
    total_resource_slots   jsonb,
    allowed_vfolder_hosts  varchar[]    NOT NULL,
    CONSTRAINT pk_groups PRIMARY KEY (id),
    CONSTRAINT uq_groups_name_domain_name UNIQUE (name, domain_name),
    CONSTRAINT fk_groups_domain_name_domains FOREIGN KEY (domain_name)
        REFERENCES domains (name) ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX ix_groups_domain_name ON groups (domain_name);

CREATE TABLE users (
    uuid                  uuid          DEFAULT uuid_generate_v4() NOT NULL,
    username              varchar(64),
    email                 varchar(64)   NOT NULL,
    password              varchar,
    need_password_change  boolean,
    full_name             varchar(64),
    description           varchar(500),
    is_active             boolean,
    created_at            timestamptz   DEFAULT now(),
    integration_id        varchar(512),
    domain_name           varchar(64),
    role                  userrole,
    CONSTRAINT pk_users PRIMARY KEY (uuid),
    CONSTRAINT uq_users_username UNIQUE (username),
    CONSTRAINT fk_users_domain_name_domains FOREIGN KEY (domain_name) REFERENCES domains (name)
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_domain_name ON users (domain_name);

CREATE TABLE association_groups_users (
    user_id   uuid NOT NULL,
    group_id  uuid NOT NULL,
    CONSTRAINT uq_association_user_id_group_id UNIQUE (user_id, group_id),
    CONSTRAINT fk_association_groups_users_group_id_groups FOREIGN KEY (group_id)
        REFERENCES groups (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_association_groups_users_user_id_users FOREIGN KEY (user_id)
        REFERENCES users (uuid) ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE keypair_resource_policies (
    name                        varchar(256) NOT NULL,
    created_at                  timestamptz  DEFAULT now(),
    default_for_unspecified     defaultforunspecified NOT NULL,
    total_resource_slots        jsonb        NOT NULL,
    max_concurrent_sessions     integer      NOT NULL,
    max_containers_per_session  integer      NOT NULL,
    max_vfolder_count           integer      NOT NULL,
    max_vfolder_size            bigint       NOT NULL,
    idle_timeout                bigint       NOT NULL,
    allowed_vfolder_hosts       varchar[]    NOT NULL,
    CONSTRAINT pk_keypair_resource_policies PRIMARY KEY (name)
);

CREATE TABLE keypairs (
    user_id           varchar(256),
    access_key        varchar(20)  NOT NULL,
    secret_key        varchar(40),
    is_active         boolean,
    is_admin          boolean      DEFAULT false,
    created_at        timestamptz  DEFAULT now(),
    last_used         timestamptz,
    concurrency_used  integer,
    rate_limit        integer,
    num_queries       integer      DEFAULT 0,
    "user"            uuid         NOT NULL,
    resource_policy   varchar(256) NOT NULL,
    CONSTRAINT pk_keypairs PRIMARY KEY (access_key),
    CONSTRAINT fk_keypairs_user_users FOREIGN KEY ("user") REFERENCES users (uuid),
    CONSTRAINT fk_keypairs_resource_policy_keypair_resource_policies FOREIGN KEY (resource_policy)
        REFERENCES keypair_resource_policies (name)
);
CREATE INDEX ix_keypairs_is_active ON keypairs (is_active);
CREATE INDEX ix_keypairs_is_admin ON keypairs (is_admin);
CREATE INDEX ix_keypairs_user_id ON keypairs (user_id);

CREATE TABLE kernels (
    id               uuid         DEFAULT uuid_generate_v4() NOT NULL,
    sess_id          varchar(64),
    role             varchar(16)  NOT NULL,
    agent            varchar(64),
    agent_addr       varchar(128) NOT NULL,
    domain_name      varchar(64)  NOT NULL,
    group_id         uuid         NOT NULL,
    user_uuid        uuid         NOT NULL,
    access_key       varchar(20),
    image            varchar(512),
    registry         varchar(512),
    tag              varchar(64),
    container_id     varchar(64),
    occupied_slots   jsonb        NOT NULL,
    occupied_shares  jsonb        NOT NULL,
    environ          varchar[],
    kernel_host      varchar(128),
    repl_in_port     integer      NOT NULL,
    repl_out_port    integer      NOT NULL,
    stdin_port       integer      NOT NULL,
    stdout_port      integer      NOT NULL,
    service_ports    jsonb,
    created_at       timestamptz  DEFAULT now(),
    terminated_at    timestamptz,
    status           kernelstatus,
    status_info      varchar,
    num_queries      bigint,
    last_stat        jsonb,
    CONSTRAINT pk_kernels PRIMARY KEY (id),
    CONSTRAINT fk_kernels_agent_agents FOREIGN KEY (agent) REFERENCES agents (id),
    CONSTRAINT fk_kernels_domain_name_domains FOREIGN KEY (domain_name) REFERENCES domains (name),
    CONSTRAINT fk_kernels_group_id_groups FOREIGN KEY (group_id) REFERENCES groups (id),
    CONSTRAINT fk_kernels_user_uuid_users FOREIGN KEY (user_uuid) REFERENCES users (uuid),
    CONSTRAINT fk_kernels_access_key_keypairs FOREIGN KEY (access_key) REFERENCES keypairs (access_key)
);
CREATE INDEX ix_kernels_created_at ON kernels (created_at);
CREATE INDEX ix_kernels_sess_id ON kernels (sess_id);
CREATE INDEX ix_kernels_sess_id_role ON kernels (sess_id, role);
CREATE INDEX ix_kernels_status ON kernels (status);
CREATE INDEX ix_kernels_terminated_at ON kernels (terminated_at);
CREATE UNIQUE INDEX ix_kernels_unique_sess_token ON kernels (access_key, sess_id)
    WHERE status != 'TERMINATED' AND role = 'master';

CREATE TABLE resource_presets (
    name            varchar(256) NOT NULL,
    resource_slots  jsonb        NOT NULL,
    CONSTRAINT pk_resource_presets PRIMARY KEY (name)
);

CREATE TABLE vfolders (
    id          uuid         DEFAULT uuid_generate_v4() NOT NULL,
    host        varchar(128) NOT NULL,
    name        varchar(64)  NOT NULL,
    max_files   integer,
    max_size    integer,
    num_files   integer,
    cur_size    integer,
    created_at  timestamptz  DEFAULT now(),
    last_used   timestamptz,
    "user"      uuid,
    "group"     uuid,
    CONSTRAINT pk_vfolders PRIMARY KEY (id),
    CONSTRAINT fk_vfolders_user_users FOREIGN KEY ("user") REFERENCES users (uuid),
    CONSTRAINT fk_vfolders_group_groups FOREIGN KEY ("group") REFERENCES groups (id)
);

CREATE TABLE vfolder_attachment (
    vfolder  uuid NOT NULL,
    kernel   uuid NOT NULL,
    CONSTRAINT pk_vfolder_attachment PRIMARY KEY (vfolder, kernel),
    CONSTRAINT fk_vfolder_attachment_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_vfolder_attachment_kernel_kernels FOREIGN KEY (kernel)
        REFERENCES kernels (id) ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE vfolder_invitations (
    id          uuid         DEFAULT uuid_generate_v4() NOT NULL,
    permission  vfolderpermission,
    inviter     varchar(256),
    invitee     varchar(256) NOT NULL,
    state       varchar(10),
    created_at  timestamptz  DEFAULT now(),
    vfolder     uuid         NOT NULL,
    CONSTRAINT pk_vfolder_invitations PRIMARY KEY (id),
    CONSTRAINT fk_vfolder_invitations_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE
);

CREATE TABLE vfolder_permissions (
    permission  vfolderpermission,
    vfolder     uuid NOT NULL,
    "user"      uuid NOT NULL,
    CONSTRAINT fk_vfolder_permissions_vfolder_vfolders FOREIGN KEY (vfolder)
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT fk_vfolder_permissions_user_users FOREIGN KEY ("user") REFERENCES users (uuid)
);
