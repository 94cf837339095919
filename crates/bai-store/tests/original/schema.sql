--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: uuid-ossp; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA public;


--
-- Name: EXTENSION "uuid-ossp"; Type: COMMENT; Schema: -; Owner: 
--

COMMENT ON EXTENSION "uuid-ossp" IS 'generate universally unique identifiers (UUIDs)';


--
-- Name: agentstatus; Type: TYPE; Schema: public; Owner: postgres
--

CREATE TYPE public.agentstatus AS ENUM (
    'ALIVE',
    'LOST',
    'RESTARTING',
    'TERMINATED'
);


ALTER TYPE public.agentstatus OWNER TO postgres;

--
-- Name: defaultforunspecified; Type: TYPE; Schema: public; Owner: postgres
--

CREATE TYPE public.defaultforunspecified AS ENUM (
    'LIMITED',
    'UNLIMITED'
);


ALTER TYPE public.defaultforunspecified OWNER TO postgres;

--
-- Name: kernelstatus; Type: TYPE; Schema: public; Owner: postgres
--

CREATE TYPE public.kernelstatus AS ENUM (
    'PREPARING',
    'BUILDING',
    'RUNNING',
    'RESTARTING',
    'RESIZING',
    'SUSPENDED',
    'TERMINATING',
    'TERMINATED',
    'ERROR'
);


ALTER TYPE public.kernelstatus OWNER TO postgres;

--
-- Name: userrole; Type: TYPE; Schema: public; Owner: postgres
--

CREATE TYPE public.userrole AS ENUM (
    'superadmin',
    'admin',
    'user',
    'monitor'
);


ALTER TYPE public.userrole OWNER TO postgres;

--
-- Name: vfolderpermission; Type: TYPE; Schema: public; Owner: postgres
--

CREATE TYPE public.vfolderpermission AS ENUM (
    'ro',
    'rw',
    'wd'
);


ALTER TYPE public.vfolderpermission OWNER TO postgres;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: agents; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.agents (
    id character varying(64) NOT NULL,
    status public.agentstatus NOT NULL,
    region character varying(64) NOT NULL,
    available_slots jsonb NOT NULL,
    occupied_slots jsonb NOT NULL,
    addr character varying(128) NOT NULL,
    first_contact timestamp with time zone DEFAULT now(),
    lost_at timestamp with time zone,
    version character varying(64) NOT NULL,
    compute_plugins jsonb NOT NULL
);


ALTER TABLE public.agents OWNER TO postgres;

--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


ALTER TABLE public.alembic_version OWNER TO postgres;

--
-- Name: association_groups_users; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.association_groups_users (
    user_id uuid NOT NULL,
    group_id uuid NOT NULL
);


ALTER TABLE public.association_groups_users OWNER TO postgres;

--
-- Name: domains; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.domains (
    name character varying(64) NOT NULL,
    description character varying(512),
    is_active boolean,
    created_at timestamp with time zone DEFAULT now(),
    modified_at timestamp with time zone DEFAULT now(),
    total_resource_slots jsonb,
    allowed_vfolder_hosts character varying[] NOT NULL,
    integration_id character varying(512)
);


ALTER TABLE public.domains OWNER TO postgres;

--
-- Name: groups; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.groups (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    name character varying(64) NOT NULL,
    description character varying(512),
    is_active boolean,
    created_at timestamp with time zone DEFAULT now(),
    modified_at timestamp with time zone DEFAULT now(),
    integration_id character varying(512),
    domain_name character varying(64) NOT NULL,
    total_resource_slots jsonb,
    allowed_vfolder_hosts character varying[] NOT NULL
);


ALTER TABLE public.groups OWNER TO postgres;

--
-- Name: kernels; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.kernels (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    sess_id character varying(64),
    role character varying(16) NOT NULL,
    agent character varying(64),
    agent_addr character varying(128) NOT NULL,
    domain_name character varying(64) NOT NULL,
    group_id uuid NOT NULL,
    user_uuid uuid NOT NULL,
    access_key character varying(20),
    image character varying(512),
    registry character varying(512),
    tag character varying(64),
    container_id character varying(64),
    occupied_slots jsonb NOT NULL,
    occupied_shares jsonb NOT NULL,
    environ character varying[],
    kernel_host character varying(128),
    repl_in_port integer NOT NULL,
    repl_out_port integer NOT NULL,
    stdin_port integer NOT NULL,
    stdout_port integer NOT NULL,
    service_ports jsonb,
    created_at timestamp with time zone DEFAULT now(),
    terminated_at timestamp with time zone,
    status public.kernelstatus,
    status_info character varying,
    num_queries bigint,
    last_stat jsonb
);


ALTER TABLE public.kernels OWNER TO postgres;

--
-- Name: keypair_resource_policies; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.keypair_resource_policies (
    name character varying(256) NOT NULL,
    created_at timestamp with time zone DEFAULT now(),
    default_for_unspecified public.defaultforunspecified NOT NULL,
    total_resource_slots jsonb NOT NULL,
    max_concurrent_sessions integer NOT NULL,
    max_containers_per_session integer NOT NULL,
    max_vfolder_count integer NOT NULL,
    max_vfolder_size bigint NOT NULL,
    idle_timeout bigint NOT NULL,
    allowed_vfolder_hosts character varying[] NOT NULL
);


ALTER TABLE public.keypair_resource_policies OWNER TO postgres;

--
-- Name: keypairs; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.keypairs (
    user_id character varying(256),
    access_key character varying(20) NOT NULL,
    secret_key character varying(40),
    is_active boolean,
    is_admin boolean DEFAULT false,
    created_at timestamp with time zone DEFAULT now(),
    last_used timestamp with time zone,
    concurrency_used integer,
    rate_limit integer,
    num_queries integer DEFAULT 0,
    "user" uuid NOT NULL,
    resource_policy character varying(256) NOT NULL
);


ALTER TABLE public.keypairs OWNER TO postgres;

--
-- Name: resource_presets; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.resource_presets (
    name character varying(256) NOT NULL,
    resource_slots jsonb NOT NULL
);


ALTER TABLE public.resource_presets OWNER TO postgres;

--
-- Name: users; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.users (
    uuid uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    username character varying(64),
    email character varying(64) NOT NULL,
    password character varying,
    need_password_change boolean,
    full_name character varying(64),
    description character varying(500),
    is_active boolean,
    created_at timestamp with time zone DEFAULT now(),
    integration_id character varying(512),
    domain_name character varying(64),
    role public.userrole
);


ALTER TABLE public.users OWNER TO postgres;

--
-- Name: vfolder_attachment; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.vfolder_attachment (
    vfolder uuid NOT NULL,
    kernel uuid NOT NULL
);


ALTER TABLE public.vfolder_attachment OWNER TO postgres;

--
-- Name: vfolder_invitations; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.vfolder_invitations (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    permission public.vfolderpermission,
    inviter character varying(256),
    invitee character varying(256) NOT NULL,
    state character varying(10),
    created_at timestamp with time zone DEFAULT now(),
    vfolder uuid NOT NULL
);


ALTER TABLE public.vfolder_invitations OWNER TO postgres;

--
-- Name: vfolder_permissions; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.vfolder_permissions (
    permission public.vfolderpermission,
    vfolder uuid NOT NULL,
    "user" uuid NOT NULL
);


ALTER TABLE public.vfolder_permissions OWNER TO postgres;

--
-- Name: vfolders; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.vfolders (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    host character varying(128) NOT NULL,
    name character varying(64) NOT NULL,
    max_files integer,
    max_size integer,
    num_files integer,
    cur_size integer,
    created_at timestamp with time zone DEFAULT now(),
    last_used timestamp with time zone,
    "user" uuid,
    "group" uuid
);


ALTER TABLE public.vfolders OWNER TO postgres;

--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: agents pk_agents; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.agents
    ADD CONSTRAINT pk_agents PRIMARY KEY (id);


--
-- Name: domains pk_domains; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.domains
    ADD CONSTRAINT pk_domains PRIMARY KEY (name);


--
-- Name: groups pk_groups; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.groups
    ADD CONSTRAINT pk_groups PRIMARY KEY (id);


--
-- Name: kernels pk_kernels; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT pk_kernels PRIMARY KEY (id);


--
-- Name: keypair_resource_policies pk_keypair_resource_policies; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.keypair_resource_policies
    ADD CONSTRAINT pk_keypair_resource_policies PRIMARY KEY (name);


--
-- Name: keypairs pk_keypairs; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.keypairs
    ADD CONSTRAINT pk_keypairs PRIMARY KEY (access_key);


--
-- Name: resource_presets pk_resource_presets; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.resource_presets
    ADD CONSTRAINT pk_resource_presets PRIMARY KEY (name);


--
-- Name: users pk_users; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT pk_users PRIMARY KEY (uuid);


--
-- Name: vfolder_attachment pk_vfolder_attachment; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_attachment
    ADD CONSTRAINT pk_vfolder_attachment PRIMARY KEY (vfolder, kernel);


--
-- Name: vfolder_invitations pk_vfolder_invitations; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_invitations
    ADD CONSTRAINT pk_vfolder_invitations PRIMARY KEY (id);


--
-- Name: vfolders pk_vfolders; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolders
    ADD CONSTRAINT pk_vfolders PRIMARY KEY (id);


--
-- Name: association_groups_users uq_association_user_id_group_id; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.association_groups_users
    ADD CONSTRAINT uq_association_user_id_group_id UNIQUE (user_id, group_id);


--
-- Name: groups uq_groups_name_domain_name; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.groups
    ADD CONSTRAINT uq_groups_name_domain_name UNIQUE (name, domain_name);


--
-- Name: users uq_users_username; Type: CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT uq_users_username UNIQUE (username);


--
-- Name: ix_agents_region; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_agents_region ON public.agents USING btree (region);


--
-- Name: ix_agents_status; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_agents_status ON public.agents USING btree (status);


--
-- Name: ix_groups_domain_name; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_groups_domain_name ON public.groups USING btree (domain_name);


--
-- Name: ix_kernels_created_at; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_kernels_created_at ON public.kernels USING btree (created_at);


--
-- Name: ix_kernels_sess_id; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_kernels_sess_id ON public.kernels USING btree (sess_id);


--
-- Name: ix_kernels_sess_id_role; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_kernels_sess_id_role ON public.kernels USING btree (sess_id, role);


--
-- Name: ix_kernels_status; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_kernels_status ON public.kernels USING btree (status);


--
-- Name: ix_kernels_terminated_at; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_kernels_terminated_at ON public.kernels USING btree (terminated_at);


--
-- Name: ix_kernels_unique_sess_token; Type: INDEX; Schema: public; Owner: postgres
--

CREATE UNIQUE INDEX ix_kernels_unique_sess_token ON public.kernels USING btree (access_key, sess_id) WHERE ((status <> 'TERMINATED'::public.kernelstatus) AND ((role)::text = 'master'::text));


--
-- Name: ix_keypairs_is_active; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_keypairs_is_active ON public.keypairs USING btree (is_active);


--
-- Name: ix_keypairs_is_admin; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_keypairs_is_admin ON public.keypairs USING btree (is_admin);


--
-- Name: ix_keypairs_user_id; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_keypairs_user_id ON public.keypairs USING btree (user_id);


--
-- Name: ix_users_domain_name; Type: INDEX; Schema: public; Owner: postgres
--

CREATE INDEX ix_users_domain_name ON public.users USING btree (domain_name);


--
-- Name: ix_users_email; Type: INDEX; Schema: public; Owner: postgres
--

CREATE UNIQUE INDEX ix_users_email ON public.users USING btree (email);


--
-- Name: association_groups_users fk_association_groups_users_group_id_groups; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.association_groups_users
    ADD CONSTRAINT fk_association_groups_users_group_id_groups FOREIGN KEY (group_id) REFERENCES public.groups(id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: association_groups_users fk_association_groups_users_user_id_users; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.association_groups_users
    ADD CONSTRAINT fk_association_groups_users_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(uuid) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: groups fk_groups_domain_name_domains; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.groups
    ADD CONSTRAINT fk_groups_domain_name_domains FOREIGN KEY (domain_name) REFERENCES public.domains(name) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: kernels fk_kernels_access_key_keypairs; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT fk_kernels_access_key_keypairs FOREIGN KEY (access_key) REFERENCES public.keypairs(access_key);


--
-- Name: kernels fk_kernels_agent_agents; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT fk_kernels_agent_agents FOREIGN KEY (agent) REFERENCES public.agents(id);


--
-- Name: kernels fk_kernels_domain_name_domains; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT fk_kernels_domain_name_domains FOREIGN KEY (domain_name) REFERENCES public.domains(name);


--
-- Name: kernels fk_kernels_group_id_groups; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT fk_kernels_group_id_groups FOREIGN KEY (group_id) REFERENCES public.groups(id);


--
-- Name: kernels fk_kernels_user_uuid_users; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.kernels
    ADD CONSTRAINT fk_kernels_user_uuid_users FOREIGN KEY (user_uuid) REFERENCES public.users(uuid);


--
-- Name: keypairs fk_keypairs_resource_policy_keypair_resource_policies; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.keypairs
    ADD CONSTRAINT fk_keypairs_resource_policy_keypair_resource_policies FOREIGN KEY (resource_policy) REFERENCES public.keypair_resource_policies(name);


--
-- Name: keypairs fk_keypairs_user_users; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.keypairs
    ADD CONSTRAINT fk_keypairs_user_users FOREIGN KEY ("user") REFERENCES public.users(uuid);


--
-- Name: users fk_users_domain_name_domains; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT fk_users_domain_name_domains FOREIGN KEY (domain_name) REFERENCES public.domains(name);


--
-- Name: vfolder_attachment fk_vfolder_attachment_kernel_kernels; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_attachment
    ADD CONSTRAINT fk_vfolder_attachment_kernel_kernels FOREIGN KEY (kernel) REFERENCES public.kernels(id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: vfolder_attachment fk_vfolder_attachment_vfolder_vfolders; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_attachment
    ADD CONSTRAINT fk_vfolder_attachment_vfolder_vfolders FOREIGN KEY (vfolder) REFERENCES public.vfolders(id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: vfolder_invitations fk_vfolder_invitations_vfolder_vfolders; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_invitations
    ADD CONSTRAINT fk_vfolder_invitations_vfolder_vfolders FOREIGN KEY (vfolder) REFERENCES public.vfolders(id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: vfolder_permissions fk_vfolder_permissions_user_users; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_permissions
    ADD CONSTRAINT fk_vfolder_permissions_user_users FOREIGN KEY ("user") REFERENCES public.users(uuid);


--
-- Name: vfolder_permissions fk_vfolder_permissions_vfolder_vfolders; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolder_permissions
    ADD CONSTRAINT fk_vfolder_permissions_vfolder_vfolders FOREIGN KEY (vfolder) REFERENCES public.vfolders(id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: vfolders fk_vfolders_group_groups; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolders
    ADD CONSTRAINT fk_vfolders_group_groups FOREIGN KEY ("group") REFERENCES public.groups(id);


--
-- Name: vfolders fk_vfolders_user_users; Type: FK CONSTRAINT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public.vfolders
    ADD CONSTRAINT fk_vfolders_user_users FOREIGN KEY ("user") REFERENCES public.users(uuid);


--
-- PostgreSQL database dump complete
--


