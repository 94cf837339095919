//! SQLite: one connection that writes, several that read.
//!
//! Write-ahead logging, so that readers never wait; `synchronous=FULL`, so that a committed transaction survives a power
//! failure; `BEGIN IMMEDIATE`, so that a transaction which has begun is the only writer. A database in memory has a
//! single connection: its readers wait for the transaction that is open.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _, Sqlite};
use uuid::Uuid;

use super::param::{json_text, time_text};
use super::{Param, Sql};
use crate::error::Source;
use crate::{ConflictKind, Error, Result};

/// Connections for reading.
const READERS: u32 = 4;
/// How long an operation waits for its turn before it fails as retryable.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before opening is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// Statements kept prepared by each connection.
const PREPARED: usize = 256;

/// Families of SQLite's codes.
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const FULL: u32 = 13;

/// The connections to one database.
#[derive(Clone, Debug)]
pub(crate) struct Pools {
    writer: SqlitePool,
    /// The writer itself for a database in memory.
    readers: SqlitePool,
}

impl Pools {
    /// A database that is gone when the last clone is.
    pub(super) async fn in_memory() -> Result<Self> {
        let writer = pool(1, options().filename(":memory:")).await?;
        let readers = writer.clone();
        Ok(Self { writer, readers })
    }

    /// The database in this file, which is made if there is none. Only its owner may read it: it holds secrets.
    pub(super) async fn at(path: &Path, is_read_only: bool) -> Result<Self> {
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(Error::Address {
                uri: format!("sqlite://{}", path.display()),
                reason: format!("cannot create the file: {error}"),
            });
        }
        let options = options()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let reading = options.clone().pragma("query_only", "ON");
        let writer = pool(1, if is_read_only { reading.clone() } else { options }).await?;
        let readers = pool(READERS, reading).await?;
        Ok(Self { writer, readers })
    }

    pub(super) async fn begin(&self) -> Result<Transaction> {
        let tx = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(classify)?;
        Ok(Transaction(tx))
    }

    pub(super) async fn fetch(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<super::Row>> {
        let rows = query(sql, params)
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        Ok(rows.into_iter().map(|row| super::Row::Sqlite(Row(row))).collect())
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn options() -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .foreign_keys(true)
        .busy_timeout(PATIENCE)
        .statement_cache_capacity(PREPARED)
        .disable_statement_logging()
}

/// Opens connections. While another process changes how the file is kept, as at its first start, SQLite refuses at once
/// whatever `busy_timeout` says, so that it is asked again.
async fn pool(connections: u32, options: SqliteConnectOptions) -> Result<SqlitePool> {
    let begun = Instant::now();
    loop {
        let opened = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(connections)
            .acquire_timeout(PATIENCE)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await;
        match opened {
            Err(error) if family(&error) == Some(BUSY) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
            }
            opened => return opened.map_err(classify),
        }
    }
}

/// A transaction on the writing connection.
#[derive(Debug)]
pub(crate) struct Transaction(sqlx::Transaction<'static, Sqlite>);

impl Transaction {
    pub(super) async fn fetch(&mut self, sql: Sql, params: Vec<Param>) -> Result<Vec<super::Row>> {
        let rows = query(sql, params)
            .fetch_all(&mut *self.0)
            .await
            .map_err(classify)?;
        Ok(rows.into_iter().map(|row| super::Row::Sqlite(Row(row))).collect())
    }

    pub(super) async fn execute(&mut self, sql: Sql, params: Vec<Param>) -> Result<u64> {
        let result = query(sql, params).execute(&mut *self.0).await.map_err(classify)?;
        Ok(result.rows_affected())
    }

    pub(super) async fn run_script(&mut self, script: &'static str) -> Result<()> {
        sqlx::raw_sql(script)
            .execute(&mut *self.0)
            .await
            .map_err(classify)?;
        Ok(())
    }

    pub(super) async fn commit(self) -> Result<()> {
        self.0.commit().await.map_err(classify)
    }
}

/// Statements are literals of this crate, put together with nothing but placeholders and names of the schema; values
/// only ever travel as parameters.
fn query(sql: Sql, params: Vec<Param>) -> Query<'static, Sqlite, SqliteArguments> {
    let query = sqlx::query(AssertSqlSafe(sql));
    params.into_iter().fold(query, |query, param| match param {
        Param::Text(text) | Param::Enum(_, text) => query.bind(text),
        Param::Integer(number) => query.bind(number),
        Param::Boolean(truth) => query.bind(truth),
        Param::Uuid(id) => query.bind(id.map(|id| id.to_string())),
        Param::Time(at) => query.bind(at.map(time_text)),
        Param::Json(value) => query.bind(value.as_ref().map(json_text)),
        Param::Texts(texts) => query.bind(texts.map(|texts| Value::from(texts).to_string())),
    })
}

/// One row of a result.
#[derive(Debug)]
pub(crate) struct Row(SqliteRow);

impl Row {
    pub(super) fn text(&self, column: &str) -> Result<Option<String>> {
        self.0
            .try_get_unchecked(column)
            .map_err(|error| Error::unreadable(column, error))
    }

    pub(super) fn integer(&self, column: &str) -> Result<Option<i64>> {
        self.0
            .try_get_unchecked(column)
            .map_err(|error| Error::unreadable(column, error))
    }

    pub(super) fn boolean(&self, column: &str) -> Result<Option<bool>> {
        Ok(self.integer(column)?.map(|number| number != 0))
    }

    pub(super) fn uuid(&self, column: &str) -> Result<Option<Uuid>> {
        self.parsed(column)
    }

    pub(super) fn time(&self, column: &str) -> Result<Option<DateTime<Utc>>> {
        self.parsed(column)
    }

    pub(super) fn json(&self, column: &str) -> Result<Option<Value>> {
        self.parsed(column)
    }

    /// NULL elements, which PostgreSQL's arrays may have, are nothing.
    pub(super) fn texts(&self, column: &str) -> Result<Option<Vec<String>>> {
        let Some(text) = self.text(column)? else {
            return Ok(None);
        };
        let texts: Vec<Option<String>> =
            serde_json::from_str(&text).map_err(|error| Error::unreadable(column, error))?;
        Ok(Some(texts.into_iter().flatten().collect()))
    }

    fn parsed<T: FromStr>(&self, column: &str) -> Result<Option<T>>
    where
        T::Err: Into<Source>,
    {
        let text = self.text(column)?;
        text.map(|text| text.parse().map_err(|error| Error::unreadable(column, error)))
            .transpose()
    }
}

/// Names of unique constraints and indexes by the columns that SQLite names instead. A primary key of one column needs
/// no line.
const UNIQUE_NAMES: [(&str, &str); 6] = [
    ("users.email", "ix_users_email"),
    ("users.username", "uq_users_username"),
    ("groups.name, groups.domain_name", "uq_groups_name_domain_name"),
    (
        "association_groups_users.user_id, association_groups_users.group_id",
        "uq_association_user_id_group_id",
    ),
    (
        "kernels.access_key, kernels.sess_id",
        "ix_kernels_unique_sess_token",
    ),
    (
        "vfolder_attachment.vfolder, vfolder_attachment.kernel",
        "pk_vfolder_attachment",
    ),
];

/// Sorts the library's errors by result code, never by text (`data-model.md` 22). Only the name of a constraint comes
/// out of the text.
/// The kind of failure that SQLite tells: its extended code without what extends it, which is all but the low byte.
fn family(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

fn classify(error: sqlx::Error) -> Error {
    use sqlx::error::ErrorKind;
    let sqlx::Error::Database(inner) = &error else {
        return match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) => Error::Unavailable(error.into()),
            _ => Error::Database(error.into()),
        };
    };
    let kind = match inner.kind() {
        ErrorKind::UniqueViolation => ConflictKind::Unique,
        ErrorKind::ForeignKeyViolation => ConflictKind::ForeignKey,
        ErrorKind::NotNullViolation => ConflictKind::NotNull,
        ErrorKind::CheckViolation => ConflictKind::Check,
        _ => {
            return match family(&error) {
                Some(BUSY | LOCKED | FULL) => Error::Unavailable(error.into()),
                _ => Error::Database(error.into()),
            };
        }
    };
    let detail = inner
        .message()
        .split_once("failed: ")
        .map_or("", |(_, detail)| detail);
    let constraint = match kind {
        ConflictKind::ForeignKey => "foreign_key".to_owned(),
        ConflictKind::Unique => unique_name(detail),
        ConflictKind::NotNull | ConflictKind::Check => detail.to_owned(),
    };
    Error::Conflict { kind, constraint }
}

fn unique_name(columns: &str) -> String {
    if let Some((_, name)) = UNIQUE_NAMES.iter().find(|(of, _)| *of == columns) {
        return (*name).to_owned();
    }
    match columns.split_once('.') {
        Some((table, column)) if !column.contains(',') => format!("pk_{table}"),
        _ => columns.to_owned(),
    }
}
