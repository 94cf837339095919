ALTER TYPE public.defaultforunspecified RENAME TO default_for_unspecified;
ALTER TABLE public.kernels ALTER container_id TYPE varchar;
ALTER TABLE public.kernels ALTER sess_id SET DEFAULT public.uuid_generate_v4();
ALTER TABLE public.kernels ALTER occupied_slots SET DEFAULT '{}'::jsonb, ALTER occupied_shares SET DEFAULT '{}'::jsonb;
ALTER TABLE public.agents ALTER available_slots SET DEFAULT '{}'::jsonb, ALTER occupied_slots SET DEFAULT '{}'::jsonb,
    ALTER compute_plugins SET DEFAULT '{}'::jsonb, ALTER region SET DEFAULT 'amazon/ap-northeast-2',
    ALTER version SET DEFAULT '19.06.0';
-- Physical order: what was added later comes last.
ALTER TABLE public.kernels DROP image, DROP registry, DROP tag, DROP environ, DROP last_stat, DROP num_queries;
ALTER TABLE public.kernels ADD last_stat jsonb, ADD num_queries bigint, ADD tag varchar(64), ADD environ varchar[],
    ADD registry varchar(512), ADD image varchar(512);
ALTER TABLE public.users DROP full_name, DROP description, DROP password;
ALTER TABLE public.users ADD description varchar(500), ADD password varchar, ADD full_name varchar(64);
ALTER TABLE public.keypairs DROP rate_limit, DROP last_used, DROP secret_key;
ALTER TABLE public.keypairs ADD secret_key varchar(40), ADD last_used timestamptz, ADD rate_limit integer;
ALTER TABLE public.keypair_resource_policies DROP idle_timeout, DROP max_vfolder_size;
ALTER TABLE public.keypair_resource_policies ADD max_vfolder_size bigint NOT NULL, ADD idle_timeout bigint NOT NULL;
INSERT INTO public.alembic_version VALUES ('c401d78cc7b9') ON CONFLICT DO NOTHING;
