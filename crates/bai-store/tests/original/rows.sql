-- Rows as the original manager wrote them: what its sessions must have around them, one that runs, one that ended.
INSERT INTO domains (name, is_active, total_resource_slots, allowed_vfolder_hosts) VALUES ('default', true, '{}', '{"{","}"}');
INSERT INTO groups (id, name, is_active, domain_name, total_resource_slots, allowed_vfolder_hosts) VALUES ('2de2b969-1d04-48a6-af16-0bc8adb3c831', 'default', true, 'default', '{}', '{}');
INSERT INTO keypair_resource_policies (name, default_for_unspecified, total_resource_slots, max_concurrent_sessions, max_containers_per_session, max_vfolder_count, max_vfolder_size, idle_timeout, allowed_vfolder_hosts) VALUES ('default', 'UNLIMITED', '{}', 30, 1, 10, 0, 600, '{local,other-host}');
INSERT INTO users (uuid, username, email, domain_name, role, is_active) VALUES ('f38dea23-50fa-42a0-b5ae-338f5f4693f4', 'user0', 'user0@example.com', 'default', 'user', true);
INSERT INTO keypairs (user_id, access_key, secret_key, is_active, is_admin, concurrency_used, rate_limit, num_queries, "user", resource_policy) VALUES ('user0@example.com', 'AKIAIOSFODNN7EXAMPLE', 'secret', true, false, 1, 30000, 0, 'f38dea23-50fa-42a0-b5ae-338f5f4693f4', 'default');
INSERT INTO users (uuid, username, email, domain_name, role, is_active) VALUES ('dfa9da54-4b28-432f-be29-c0d680c7a412', 'user1', 'user1@example.com', 'default', 'user', true);
INSERT INTO keypairs (user_id, access_key, secret_key, is_active, is_admin, concurrency_used, rate_limit, num_queries, "user", resource_policy) VALUES ('user1@example.com', 'AKIANABBDUSEREXAMPLE', 'secret', true, false, 0, 30000, 0, 'dfa9da54-4b28-432f-be29-c0d680c7a412', 'default');
INSERT INTO association_groups_users (user_id, group_id) VALUES ('f38dea23-50fa-42a0-b5ae-338f5f4693f4', '2de2b969-1d04-48a6-af16-0bc8adb3c831');
INSERT INTO agents (id, status, region, available_slots, occupied_slots, addr, version, compute_plugins) VALUES ('i-agent-golden', 'ALIVE', 'local', '{"cpu": "8", "mem": "8589934592"}', '{"cpu": "1", "mem": "268435456"}', 'tcp://127.0.0.1:16011', '19.06.0', '{}');
INSERT INTO kernels (id, sess_id, role, agent, agent_addr, domain_name, group_id, user_uuid, access_key, image, registry, tag, container_id, occupied_slots, occupied_shares, environ, kernel_host, repl_in_port, repl_out_port, stdin_port, stdout_port, service_ports, created_at, terminated_at, status, status_info, num_queries, last_stat) VALUES (
    'f085843b-e229-4c30-8656-7a7397055ccf',
    'gsess1',
    'master',
    'i-agent-golden',
    'tcp://127.0.0.1:16011',
    'default',
    '2de2b969-1d04-48a6-af16-0bc8adb3c831',
    'f38dea23-50fa-42a0-b5ae-338f5f4693f4',
    'AKIAIOSFODNN7EXAMPLE',
    '127.0.0.1:15000/lablup/python:3.6-debian',
    '127.0.0.1:15000',
    NULL,
    '0122b70ee9bd81912b87d1925cd9225a8ca1495580f808a60e3a63c965728732',
    '{"cpu": "1", "mem": "268435456"}',
    '{}',
    '{}',
    '127.0.0.1',
    '31300',
    '31301',
    '0',
    '0',
    '[{"name": "ipython", "protocol": "pty", "host_port": 31302, "container_port": 3000}, {"name": "jupyter", "protocol": "http", "host_port": 31303, "container_port": 8080}, {"name": "webapp", "protocol": "http", "host_port": 31304, "container_port": 8081}]',
    '2026-11-23 16:57:03.6464+00',
    NULL,
    'RUNNING',
    NULL,
    '0',
    NULL);
INSERT INTO kernels (id, sess_id, role, agent, agent_addr, domain_name, group_id, user_uuid, access_key, image, registry, tag, container_id, occupied_slots, occupied_shares, environ, kernel_host, repl_in_port, repl_out_port, stdin_port, stdout_port, service_ports, created_at, terminated_at, status, status_info, num_queries, last_stat) VALUES (
    '7b364ee7-9af6-452d-80cd-734d462759ae',
    'usess1',
    'master',
    'i-agent-golden',
    'tcp://127.0.0.1:16011',
    'default',
    '2de2b969-1d04-48a6-af16-0bc8adb3c831',
    'dfa9da54-4b28-432f-be29-c0d680c7a412',
    'AKIANABBDUSEREXAMPLE',
    '127.0.0.1:15000/lablup/python:3.6-debian',
    '127.0.0.1:15000',
    NULL,
    '8c4e26507f2c8d52e004594bf19663affbceeb83d7a604c3df6308d58e0f414d',
    '{"cpu": "1", "mem": "268435456"}',
    '{}',
    '{}',
    '127.0.0.1',
    '31310',
    '31311',
    '0',
    '0',
    '[{"name": "ipython", "protocol": "pty", "host_port": 31312, "container_port": 3000}, {"name": "jupyter", "protocol": "http", "host_port": 31313, "container_port": 8080}, {"name": "webapp", "protocol": "http", "host_port": 31314, "container_port": 8081}]',
    '2026-11-23 16:57:06.841976+00',
    '2026-11-23 16:57:08.548476+00',
    'TERMINATED',
    'self-terminated',
    '1',
    '{"mem": {"pct": "100", "current": "835584", "capacity": "835584", "stats.max": "835584", "unit_hint": "bytes"}, "io_read": {"pct": null, "current": "0", "capacity": "0", "unit_hint": "bytes", "stats.rate": "0"}, "cpu_used": {"pct": "100", "current": "151.864", "capacity": "151.864", "unit_hint": "msec"}, "cpu_util": {"pct": "100", "current": "151.864", "capacity": "151.864", "stats.avg": "151.864", "stats.max": "151.864", "unit_hint": "percent"}, "io_write": {"pct": null, "current": "0", "capacity": "0", "unit_hint": "bytes", "stats.rate": "0"}, "io_scratch_size": {"pct": null, "current": "0", "capacity": "0", "stats.max": "0", "unit_hint": "bytes"}}');
