//! The only place that knows the database library.
//!
//! A closed enum for each thing that a database gives (pool, transaction, row), and values that travel between them and
//! the statements: [`Param`] with typed NULLs, [`Row`] with getters by column name. A statement is one text for all
//! databases, with `$n` for parameters; what differs between databases (enums, JSON, arrays, timestamps) is settled by
//! the kind of the parameter and the type that is read, so that no statement needs to know.
//!
//! What is written once for each is little: migrations, catalogue queries, and the lock of fixtures
//! ([`Transaction::lock_fixtures`]).

mod param;
mod postgres;
mod row;
mod sqlite;

use std::borrow::Cow;

use crate::store::StoreOptions;
use crate::{Error, Result};

pub(crate) use param::{EnumType, Param, params};
pub(crate) use row::Row;

/// The text of a statement: a literal, or put together from literals and numbers of placeholders.
pub(crate) type Sql = Cow<'static, str>;

/// Which database, for the few things that are written once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

/// The first number of our advisory locks on PostgreSQL, so that they are nobody else's: "bai".
const LOCK_CLASS: i32 = 0x0062_6169;
/// The second number of the one for loading fixtures.
const FIXTURES: i32 = 2;

/// An open database. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Postgres(postgres::Pool),
    Sqlite(sqlite::Pools),
}

impl Database {
    /// Opens what `uri` names if it is there, without looking at its contents.
    pub(crate) async fn open_existing(uri: &str, options: &StoreOptions) -> Result<Self> {
        if let Some(path) = uri.strip_prefix("sqlite://")
            && !std::path::Path::new(path).is_file()
        {
            return Err(Error::Address {
                uri: uri.to_owned(),
                reason: "there is no such file".to_owned(),
            });
        }
        Self::open(uri, options).await
    }

    /// Opens what `uri` names, making a missing file, without looking at its contents.
    pub(crate) async fn open(uri: &str, options: &StoreOptions) -> Result<Self> {
        if uri == "sqlite::memory:" {
            return sqlite::Pools::in_memory().await.map(Self::Sqlite);
        }
        if let Some(path) = uri.strip_prefix("sqlite://").filter(|path| path.starts_with('/')) {
            return sqlite::Pools::at(path.as_ref(), options.read_only)
                .await
                .map(Self::Sqlite);
        }
        if uri.starts_with("postgres://") || uri.starts_with("postgresql://") {
            return postgres::Pool::open(uri, options).await.map(Self::Postgres);
        }
        Err(Error::Address {
            uri: without_password(uri),
            reason:
                "use postgres://user:password@host:port/database, sqlite:///absolute/path or sqlite::memory:"
                    .to_owned(),
        })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Begins a transaction that may write. It is rolled back when dropped.
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        match self {
            Self::Postgres(pool) => pool.begin().await.map(Transaction::Postgres),
            Self::Sqlite(pools) => pools.begin().await.map(Transaction::Sqlite),
        }
    }

    /// The rows of one reading statement outside any transaction.
    pub(crate) async fn fetch(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>> {
        match self {
            Self::Postgres(pool) => pool.fetch(sql, params).await,
            Self::Sqlite(pools) => pools.fetch(sql, params).await,
        }
    }

    /// Closes all connections after what they are doing.
    pub(crate) async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close(),
            Self::Sqlite(pools) => pools.close().await,
        }
    }

    /// Waits for the turn at changing the schema. SQLite has its one writer for that.
    pub(crate) async fn begin_maintenance(&self) -> Result<Maintenance> {
        match self {
            Self::Postgres(pool) => postgres::Maintenance::begin(pool)
                .await
                .map(|maintenance| Maintenance(Some(maintenance))),
            Self::Sqlite(_) => Ok(Maintenance(None)),
        }
    }
}

/// The address without what must not be printed.
fn without_password(uri: &str) -> String {
    let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
    // What follows an @ has no password, but the query may.
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split_once('?').map_or(place, |(place, _)| place);
    format!("{scheme}:{place}")
}

/// The turn at changing the schema; see [`Database::begin_maintenance`].
#[derive(Debug)]
pub(crate) struct Maintenance(Option<postgres::Maintenance>);

impl Maintenance {
    /// Makes an index unless it is there, without keeping anybody from writing. `definition` is what follows the name in
    /// `CREATE INDEX`. On SQLite indexes are part of the migrations.
    pub(crate) async fn ensure_index(&mut self, name: &str, definition: &str) -> Result<()> {
        match &mut self.0 {
            Some(maintenance) => maintenance.ensure_index(name, definition).await,
            None => Ok(()),
        }
    }

    /// Gives the turn to the next one.
    pub(crate) async fn end(self) {
        if let Some(maintenance) = self.0 {
            maintenance.end().await;
        }
    }
}

/// A transaction that may write; see [`Database::begin`].
#[derive(Debug)]
pub(crate) enum Transaction {
    Postgres(postgres::Transaction),
    Sqlite(sqlite::Transaction),
}

impl Transaction {
    /// The rows that a statement returns.
    pub(crate) async fn fetch(&mut self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>> {
        match self {
            Self::Postgres(tx) => tx.fetch(sql, params).await,
            Self::Sqlite(tx) => tx.fetch(sql, params).await,
        }
    }

    /// The number of rows that a statement changed.
    pub(crate) async fn execute(&mut self, sql: Sql, params: Vec<Param>) -> Result<u64> {
        match self {
            Self::Postgres(tx) => tx.execute(sql, params).await,
            Self::Sqlite(tx) => tx.execute(sql, params).await,
        }
    }

    /// Runs several statements without parameters.
    pub(crate) async fn run_script(&mut self, script: &'static str) -> Result<()> {
        match self {
            Self::Postgres(tx) => tx.run_script(script).await,
            Self::Sqlite(tx) => tx.run_script(script).await,
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Postgres(tx) => tx.commit().await,
            Self::Sqlite(tx) => tx.commit().await,
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Waits until no other unit of work has this lock, and keeps it until the end: one at a time loads fixtures, some of
    /// whose tables have no key. On SQLite every unit of work that has begun is alone.
    pub(crate) async fn lock_fixtures(&mut self) -> Result<()> {
        match self {
            Self::Postgres(tx) => {
                let sql = "SELECT pg_advisory_xact_lock($1::int, $2::int)";
                tx.fetch(sql.into(), params![LOCK_CLASS, FIXTURES]).await?;
                Ok(())
            }
            Self::Sqlite(_) => Ok(()),
        }
    }
}
