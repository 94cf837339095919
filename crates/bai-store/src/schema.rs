//! Bringing the schema of an opened database up to date, or refusing to touch it.
//!
//! Invariants: each migration is one transaction that also records it, and only one process at a time migrates, so that a
//! crash or a second process in between does no harm; `alembic_version` is never written after it was made, so that the
//! original can come back (`data-model.md` 1); a database of the original, of either lineage, only gets tables and indexes
//! of ours beside its own.

mod indexes;
mod report;

use crate::driver::{Database, Dialect, Transaction, params};
use crate::{Error, Result};

pub use report::{Lineage, SchemaReport};

/// The only revision of the original's schema that we know.
pub const ALEMBIC_HEAD: &str = "c401d78cc7b9";

/// The migrations of a database, oldest first; the version of the schema is how many of them it has had.
fn migrations(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Postgres => &[
            include_str!("../migrations/postgres/0001_schema_19_06.sql"),
            include_str!("../migrations/postgres/0002_additions.sql"),
            include_str!("../migrations/postgres/0003_lease.sql"),
            include_str!("../migrations/postgres/0004_claim.sql"),
            include_str!("../migrations/postgres/0005_counter.sql"),
            include_str!("../migrations/postgres/0006_left_behind.sql"),
            include_str!("../migrations/postgres/0007_live.sql"),
        ],
        Dialect::Sqlite => &[
            include_str!("../migrations/sqlite/0001_schema_19_06.sql"),
            include_str!("../migrations/sqlite/0002_additions.sql"),
            include_str!("../migrations/sqlite/0003_lease.sql"),
            include_str!("../migrations/sqlite/0004_claim.sql"),
            include_str!("../migrations/sqlite/0005_counter.sql"),
            include_str!("../migrations/sqlite/0006_left_behind.sql"),
            include_str!("../migrations/sqlite/0007_live.sql"),
        ],
    }
}

/// What a database holds before it is migrated.
enum Found {
    Nothing,
    /// A database at 19.06's head with so many of our migrations.
    Version(usize),
}

/// Applies what is missing.
///
/// # Errors
/// [`Error::Schema`].
pub(crate) async fn migrate(database: &Database) -> Result<()> {
    let mut maintenance = database.begin_maintenance().await?;
    apply(database).await?;
    for (name, definition) in indexes::INDEXES {
        // Without it we are slower and not wrong. Somebody's long transaction is no reason not to start.
        if let Err(error) = maintenance.ensure_index(name, definition).await {
            tracing::warn!(index = name, %error, "an index could not be made; the next start will try again");
        }
    }
    maintenance.end().await;
    Ok(())
}

async fn apply(database: &Database) -> Result<()> {
    let migrations = migrations(database.dialect());
    loop {
        let mut tx = database.begin().await?;
        let version = match found(&mut tx, database.dialect()).await? {
            Found::Nothing => 0,
            Found::Version(version) => version,
        };
        if version > migrations.len() {
            return Err(Error::Schema(format!(
                "the database has schema version {version}, but this program knows only {}: it was used by a newer \
                 version; start that one, or restore a backup made before",
                migrations.len()
            )));
        }
        let Some(migration) = migrations.get(version) else {
            return Ok(());
        };
        tx.run_script(migration).await.map_err(unmigratable)?;
        record(&mut tx, version + 1).await?;
        tx.commit().await?;
        tracing::info!(
            version = version + 1,
            "the database schema was brought up to date"
        );
    }
}

fn unmigratable(error: Error) -> Error {
    match error {
        Error::Database(source) => Error::Schema(format!(
            "the database schema cannot be brought up to date: {source}; the user must own the database and its tables, \
             and PostgreSQL must have the extension uuid-ossp"
        )),
        other => other,
    }
}

/// The first migration is that of the original's tables; the table that records ours comes with the second.
async fn record(tx: &mut Transaction, version: usize) -> Result<()> {
    if version < 2 {
        return Ok(());
    }
    let version = i64::try_from(version).unwrap_or(i64::MAX);
    let sql = "INSERT INTO bai_schema_version (version) VALUES ($1)";
    tx.execute(sql.into(), params![version]).await?;
    Ok(())
}

async fn found(tx: &mut Transaction, dialect: Dialect) -> Result<Found> {
    let tables = tables(tx, dialect).await?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    if tables.is_empty() {
        return Ok(Found::Nothing);
    }
    if !has("alembic_version") {
        return Err(Error::Schema(format!(
            "the database has tables ({}, …) but none of ours: use an empty database or one of Backend.AI 19.06",
            tables[0]
        )));
    }
    let heads = tx
        .fetch("SELECT version_num FROM alembic_version".into(), vec![])
        .await?;
    let heads: Vec<String> = heads
        .iter()
        .map(|row| row.get("version_num"))
        .collect::<Result<_>>()?;
    if heads != [ALEMBIC_HEAD] {
        return Err(Error::Schema(format!(
            "the database is at the alembic revision {heads:?}, but this program works with {ALEMBIC_HEAD} \
             (Backend.AI manager 19.06) only: upgrade an older database with the original manager first; a newer one \
             cannot be used"
        )));
    }
    if !has("bai_schema_version") {
        return Ok(Found::Version(1));
    }
    let rows = tx
        .fetch("SELECT max(version) AS n FROM bai_schema_version".into(), vec![])
        .await?;
    let version = rows.first().map(|row| row.opt::<i64>("n")).transpose()?.flatten();
    Ok(Found::Version(
        usize::try_from(version.unwrap_or(1)).unwrap_or(usize::MAX),
    ))
}

async fn tables(tx: &mut Transaction, dialect: Dialect) -> Result<Vec<String>> {
    let rows = tx.fetch(tables_of(dialect).into(), vec![]).await?;
    rows.iter().map(|row| row.get("name")).collect()
}

/// The statement that answers the names of all tables.
fn tables_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => {
            "SELECT tablename AS name FROM pg_catalog.pg_tables WHERE schemaname = current_schema() ORDER BY tablename"
        }
        Dialect::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
    }
}

#[cfg(test)]
mod tests;
