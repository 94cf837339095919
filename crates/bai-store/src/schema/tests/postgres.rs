//! The schema on PostgreSQL against one that the original made, and the plans of what every session asks.

use bai_testkit::services::postgres::{Database as TestDatabase, Postgres};

use super::{LEFT_BEHIND, LIVE, at, lines, migrated};
use crate::driver::Database;

const ORIGINAL: &str = include_str!("../../../tests/original/schema.sql");

fn database(what: &str) -> Option<TestDatabase<'static>> {
    match Postgres::shared() {
        Ok(server) => Some(server.database(None)),
        Err(missing) => {
            println!("SKIPPED: {what}, because {missing}");
            None
        }
    }
}

/// Everything that a database has, but for what is ours: columns in their order with type, default and nullability,
/// constraints, indexes, enum types and their members, extensions.
const CATALOGUE: &str = "\
SELECT line FROM (
SELECT 'column ' || c.relname || ' ' || a.attnum || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
    AS line, c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(k.oid), c.relname
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE k.connamespace = 'public'::regnamespace
UNION ALL SELECT 'index ' || indexdef, indexname FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'enum ' || t.typname || ' ' || string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder), t.typname
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid GROUP BY t.typname
UNION ALL SELECT 'extension ' || extname, extname FROM pg_extension
UNION ALL SELECT 'other ' || relkind::text || ' ' || relname, relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'i')
) catalogue WHERE relname NOT LIKE 'bai\\_%' AND line NOT LIKE '% bai\\_ix\\_%' AND line NOT LIKE '%public.bai\\_%' ORDER BY line";

async fn opened(test: &TestDatabase<'_>) -> Database {
    at(&test.socket_uri()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shot_is_the_originals() {
    let what = "the schema on PostgreSQL";
    let (Some(ours), Some(theirs)) = (database(what), database(what)) else {
        return;
    };
    let database = opened(&ours).await;
    theirs.psql(ORIGINAL);
    let (ours, theirs) = (ours.psql(CATALOGUE), theirs.psql(CATALOGUE));
    assert!(theirs.lines().count() > 150, "{theirs}");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
    assert_eq!(
        lines(&database, "SELECT version_num AS line FROM alembic_version").await,
        [super::super::ALEMBIC_HEAD]
    );
}

/// Both databases have the same tables and indexes of ours.
#[tokio::test(flavor = "multi_thread")]
async fn additions_are_the_same_on_both() {
    let Some(test) = database("our indexes on PostgreSQL") else {
        return;
    };
    let postgres = opened(&test).await;
    let sqlite = migrated().await;
    let names = "SELECT name AS line FROM sqlite_master WHERE name LIKE 'bai!_%' ESCAPE '!' ORDER BY name";
    let relations = "SELECT relname AS line FROM pg_class WHERE relkind IN ('r', 'i') AND relname LIKE 'bai\\_%' \
                     ORDER BY relname COLLATE \"C\"";
    assert_eq!(lines(&postgres, relations).await, lines(&sqlite, names).await);
}

/// With a history of ended sessions, none of it is read for what lives, and of that no more than is wanted: when many live
/// and the statistics are of a moment when none did, and when they know.
#[tokio::test(flavor = "multi_thread")]
async fn live_kernels_are_found_by_index() {
    let Some(test) = database("plans on PostgreSQL") else {
        return;
    };
    let database = opened(&test).await;
    test.psql(HISTORY);
    test.psql(STATISTICS);
    for change in [REVIVAL, STATISTICS] {
        test.psql(change);
        for (query, index, column) in LIVE {
            let plan = plan(&database, query).await;
            let step = plan.iter().find(|step| step.contains(index));
            assert!(step.is_some(), "{query}: {plan:#?}");
            let is_searched = |step: &String| step.contains("Index Cond") && step.contains(column);
            assert!(
                column.is_empty() || plan.iter().any(is_searched),
                "{query}: {plan:#?}"
            );
        }
    }
    let (query, index) = LEFT_BEHIND;
    let found = plan(&database, query).await;
    assert!(found.iter().any(|step| step.contains(index)), "{found:?}");
    let usage = "SELECT k.id FROM kernels k JOIN \"groups\" g ON g.id = k.group_id \
                 WHERE k.terminated_at >= '2019-01-02' AND k.terminated_at < '2019-01-03' \
                 ORDER BY k.terminated_at, k.id LIMIT 1000";
    let found = plan(&database, usage).await;
    assert!(
        found.iter().any(|step| step.contains("ix_kernels_terminated_at")),
        "{found:?}"
    );
}

async fn plan(database: &Database, query: &str) -> Vec<String> {
    let rows = database.fetch(format!("EXPLAIN {query}").into(), vec![]).await;
    let rows = rows.expect("a plan");
    rows.iter()
        .map(|row| row.get("QUERY PLAN").expect("a step"))
        .collect()
}

/// 30,000 kernels that have ended, and 3,000 that live again.
const HISTORY: &str = "\
INSERT INTO domains (name, total_resource_slots, allowed_vfolder_hosts) VALUES ('default', '{}', '{}');
INSERT INTO groups (id, name, domain_name, total_resource_slots, allowed_vfolder_hosts)
    VALUES ('00000000-0000-0000-0000-000000000001', 'default', 'default', '{}', '{}');
INSERT INTO users (uuid, email) VALUES ('00000000-0000-0000-0000-000000000001', 'user@example.com');
INSERT INTO keypair_resource_policies VALUES ('default', now(), 'LIMITED', '{}', 1, 1, 1, 1, 1, '{}');
INSERT INTO keypairs (access_key, \"user\", resource_policy)
    SELECT 'KEY' || n, '00000000-0000-0000-0000-000000000001', 'default' FROM generate_series(0, 99) n;
INSERT INTO agents (id, status, region, available_slots, occupied_slots, addr, version, compute_plugins)
    SELECT 'i-' || n, 'ALIVE', 'local', '{}', '{}', 'tcp://x:1', '1', '{}' FROM generate_series(0, 9) n;
INSERT INTO kernels (id, sess_id, role, agent, agent_addr, domain_name, group_id, user_uuid, access_key, occupied_slots,
    occupied_shares, repl_in_port, repl_out_port, stdin_port, stdout_port, created_at, terminated_at, status)
    SELECT uuid_generate_v4(), 'session' || n, 'master', 'i-' || n % 10, 'tcp://x:1', 'default',
    '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 'KEY' || n % 100,
    '{\"cpu\": \"1\", \"mem\": \"1073741824\"}', '{}', 0, 0, 0, 0,
    timestamptz '2019-01-01' + n * interval '10 minutes', timestamptz '2019-01-01' + n * interval '11 minutes',
    'TERMINATED' FROM generate_series(1, 30000) n;
ALTER TABLE kernels SET (autovacuum_enabled = off);";
const STATISTICS: &str = "VACUUM ANALYZE";
const REVIVAL: &str =
    "UPDATE kernels SET status = 'RUNNING', terminated_at = NULL WHERE created_at < '2019-01-21 20:00'";
