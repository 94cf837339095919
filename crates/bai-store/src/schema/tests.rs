//! Our schema against the original's (`tests/schema_19_06.txt`, out of a dump of a database that the original made).

mod postgres;

use crate::catalog::{self, Kind};
use crate::driver::Database;
use crate::kernel::{holder_of_name, is_live};
use crate::store::StoreOptions;

const ORIGINAL: &str = include_str!("../../tests/schema_19_06.txt");

/// `(table, kind of line, rest of line)` for each line of the original's schema.
fn original() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let mut table = "";
    ORIGINAL
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(move |line| {
            let (word, rest) = line.trim_start().split_once(' ').expect("two words");
            if word == "table" {
                table = rest;
                return None;
            }
            Some((table, word, rest))
        })
}

async fn migrated() -> Database {
    at("sqlite::memory:").await
}

async fn at(uri: &str) -> Database {
    let options = StoreOptions::default();
    let database = Database::open(uri, &options).await.expect("a database");
    super::migrate(&database).await.expect("a schema");
    database
}

async fn lines(database: &Database, sql: &'static str) -> Vec<String> {
    let rows = database.fetch(sql.into(), vec![]).await.expect("rows");
    rows.iter().map(|row| row.get("line").expect("a line")).collect()
}

/// Without quotes, with single blanks and none within parentheses, so that two texts can be compared.
fn squeezed(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().collect();
    words
        .join(" ")
        .replace('"', "")
        .replace(" (", "(")
        .replace("( ", "(")
        .replace(" )", ")")
}

#[tokio::test]
async fn columns_are_the_originals() {
    let database = migrated().await;
    let sql = "SELECT t.name || ' ' || c.name || CASE c.\"notnull\" WHEN 1 THEN ' not-null' ELSE ' null' END AS line \
               FROM sqlite_master t JOIN pragma_table_info(t.name) c \
               WHERE t.type = 'table' AND t.name NOT LIKE 'bai!_%' ESCAPE '!' ORDER BY t.name, c.cid";
    let expected: Vec<String> = original()
        .filter(|(_, word, _)| *word == "column")
        .map(|(table, _, rest)| {
            let (column, _) = rest.split_once(' ').expect("a type");
            let (_, null) = rest.rsplit_once(' ').expect("nullability");
            format!("{table} {column} {null}")
        })
        .collect();
    assert_eq!(lines(&database, sql).await, expected);
}

#[tokio::test]
async fn indexes_are_the_originals_and_additions() {
    let database = migrated().await;
    let sql = "SELECT i.tbl_name || ' ' || i.name || ' (' || (SELECT group_concat(c.name, ', ') \
               FROM pragma_index_info(i.name) c) || ')' || CASE x.\"unique\" WHEN 1 THEN ' unique' ELSE '' END \
               || CASE x.partial WHEN 1 THEN ' partial' ELSE '' END AS line \
               FROM sqlite_master i JOIN pragma_index_list(i.tbl_name) x ON x.name = i.name \
               WHERE i.type = 'index' AND i.sql IS NOT NULL AND i.name NOT LIKE 'bai!_%' ESCAPE '!' \
               ORDER BY i.tbl_name, i.name";
    let mut expected: Vec<String> = original()
        .filter(|(_, word, _)| *word == "index")
        .map(|(table, _, rest)| format!("{table} {rest}"))
        .collect();
    expected.sort();
    assert_eq!(lines(&database, sql).await, expected);
}

#[tokio::test]
async fn constraints_are_the_originals() {
    let database = migrated().await;
    let sql = "SELECT name || ' ' || sql AS line FROM sqlite_master WHERE type = 'table'";
    let tables: Vec<String> = lines(&database, sql)
        .await
        .iter()
        .map(|line| squeezed(line))
        .collect();
    let mut count = 0;
    for (table, _, rest) in original().filter(|(_, word, _)| *word == "constraint") {
        let definition = tables
            .iter()
            .find(|line| line.starts_with(&format!("{table} ")))
            .expect(table);
        let constraint = squeezed(&format!("CONSTRAINT {rest}"));
        assert!(
            definition.contains(&constraint),
            "{constraint} is not in {definition}"
        );
        count += 1;
    }
    let ours: usize = tables
        .iter()
        .map(|table| table.matches("CONSTRAINT ").count())
        .sum();
    assert_eq!(ours, count + 4, "the four tables of our own have one each");
}

#[test]
fn the_catalogue_knows_every_column_and_length() {
    let mut columns = 0;
    for (table, _, rest) in
        original().filter(|(table, word, _)| *word == "column" && *table != "alembic_version")
    {
        let mut words = rest.split(' ');
        let (column, kind) = (words.next().expect("a column"), words.next().expect("a type"));
        let table = catalog::table(table).expect(table);
        let (_, found) = table
            .columns
            .iter()
            .find(|(name, _)| *name == column)
            .expect(column);
        let agrees = match (found, kind) {
            (Kind::Text(usize::MAX), "varchar") | (Kind::Texts, "varchar[]") => true,
            (Kind::Text(limit), _) => kind == format!("varchar({limit})"),
            (Kind::Integer, "integer" | "bigint") | (Kind::Boolean, "boolean") | (Kind::Uuid, "uuid") => true,
            (Kind::Time, "timestamptz" | "timestamp") | (Kind::Json | Kind::Slots, "jsonb") => true,
            (Kind::Enum(name), kind) => kind.eq_ignore_ascii_case(&format!("{name:?}")),
            _ => false,
        };
        assert!(agrees, "{}.{column}: {found:?} is not {kind}", table.name);
        columns += 1;
    }
    assert_eq!(
        columns,
        catalog::TABLES
            .iter()
            .map(|table| table.columns.len())
            .sum::<usize>()
    );
}

/// The searches for live kernels of every session (`data-model.md` 21): what is read, the index, and by what columns of it.
const LIVE: [(&str, &str, &str); 9] = [
    (
        concat!("SELECT occupied_slots FROM kernels WHERE ", is_live!()),
        "bai_ix_kernels_live",
        "",
    ),
    (
        concat!(
            "SELECT occupied_slots FROM kernels WHERE domain_name = 'x' AND ",
            is_live!()
        ),
        "bai_ix_kernels_live",
        "",
    ),
    (
        concat!(
            "SELECT occupied_slots FROM kernels WHERE agent = 'x' AND ",
            is_live!()
        ),
        "bai_ix_kernels_live",
        "agent",
    ),
    (
        concat!(
            "SELECT count(CASE WHEN role = 'master' THEN 1 END) FROM kernels WHERE access_key = 'x' AND ",
            is_live!()
        ),
        "bai_ix_kernels_live",
        "",
    ),
    (
        "SELECT * FROM kernels k WHERE k.access_key = 'x' AND k.sess_id = 'x' AND k.role = 'master' \
         AND k.status <> 'TERMINATED'",
        "ix_kernels_unique_sess_token",
        "sess_id",
    ),
    (
        concat!(
            "WITH wanted (owner, name) AS (VALUES ('x', 'x'), ('y', 'y')) SELECT * FROM kernels k JOIN wanted ON k.id = ",
            holder_of_name!()
        ),
        "ix_kernels_unique_sess_token",
        "sess_id",
    ),
    (
        concat!(
            "WITH wanted (owner, name) AS (VALUES ('x', 'x'), ('y', 'y')) \
             UPDATE kernels SET num_queries = 1 FROM wanted WHERE kernels.id = ",
            holder_of_name!()
        ),
        "ix_kernels_unique_sess_token",
        "sess_id",
    ),
    (
        "UPDATE kernels SET status = 'RUNNING' WHERE id = '00000000-0000-0000-0000-000000000000' \
         AND CAST(status AS text) IN ('PREPARING')",
        "pk_kernels",
        "id",
    ),
    (
        "WITH started (kernel, container) AS (VALUES (CAST('00000000-0000-0000-0000-000000000000' AS uuid), 'x'), \
         (CAST('00000000-0000-0000-0000-000000000001' AS uuid), 'y')) \
         UPDATE kernels SET status = 'RUNNING', container_id = started.container FROM started \
         WHERE kernels.id = started.kernel AND CAST(status AS text) IN ('PREPARING')",
        "pk_kernels",
        "id",
    ),
];

#[tokio::test]
async fn live_kernels_are_found_by_index() {
    let database = migrated().await;
    for (query, index, column) in LIVE {
        let sql = format!("EXPLAIN QUERY PLAN {}", query.replace("AS uuid", "AS text"));
        let rows = database.fetch(sql.into(), vec![]).await;
        let plan: Vec<String> = rows
            .expect("a plan")
            .iter()
            .map(|row| row.get("detail").expect("a step"))
            .collect();
        // SQLite has a name of its own for the index of a key, and may take that of the state for what lives.
        let index = match (index, column) {
            ("pk_kernels", _) => "sqlite_autoindex_kernels_1",
            (_, "") => "ix_kernels_",
            (index, _) => index,
        };
        let step = plan.iter().find(|step| step.contains(index));
        let step = step.unwrap_or_else(|| panic!("{query}: {plan:?}"));
        assert!(
            column.is_empty() || step.contains(&format!("{column}=?")),
            "{query}: {plan:?}"
        );
    }
}

/// What an agent may have kept is found without a look at what else it ran.
const LEFT_BEHIND: (&str, &str) = (
    "SELECT id FROM kernels WHERE agent = 'x' AND status = 'TERMINATED' AND status_info = 'agent-lost' \
     ORDER BY terminated_at DESC LIMIT 100",
    "bai_ix_kernels_left_behind",
);

#[tokio::test]
async fn kernels_left_behind_are_found_by_index() {
    let database = migrated().await;
    let (query, index) = LEFT_BEHIND;
    let sql = format!("EXPLAIN QUERY PLAN {query}");
    let rows = database.fetch(sql.into(), vec![]).await.expect("a plan");
    let plan: Vec<String> = rows
        .iter()
        .map(|row| row.get("detail").expect("a step"))
        .collect();
    assert!(plan.iter().any(|step| step.contains(index)), "{plan:?}");
}

/// A page of usage reads its own time only, however long the history.
#[tokio::test]
async fn usage_is_found_by_index() {
    let database = migrated().await;
    let sql = "EXPLAIN QUERY PLAN SELECT k.id FROM kernels k JOIN \"groups\" g ON g.id = k.group_id \
               WHERE k.terminated_at >= 'a' AND k.terminated_at < 'b' AND (k.terminated_at, k.id) > ('a', 'x') \
               ORDER BY k.terminated_at, k.id LIMIT 1000";
    let rows = database.fetch(sql.into(), vec![]).await.expect("a plan");
    let plan: Vec<String> = rows
        .iter()
        .map(|row| row.get("detail").expect("a step"))
        .collect();
    assert!(plan[0].contains("ix_kernels_terminated_at"), "{plan:?}");
}
