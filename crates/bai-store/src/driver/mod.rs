//! The only place that knows the database library.
//!
//! A closed enum for each thing that a database gives (pool, transaction, row), and values that travel between them and
//! the statements: [`Param`] with typed NULLs, [`Row`] with getters by column name. A statement is one text for all
//! databases, with `$n` for parameters; what differs between databases (enums, JSON, arrays, timestamps) is settled by
//! the kind of the parameter and the type that is read, so that no statement needs to know.
//!
//! PostgreSQL joins as a second variant of each enum, beside [`sqlite`]; callers do not change.

mod param;
mod row;
mod sqlite;

use std::borrow::Cow;

use crate::{Error, Result};

pub(crate) use param::{EnumType, Param, params};
pub(crate) use row::Row;

/// The text of a statement: a literal, or put together from literals and numbers of placeholders.
pub(crate) type Sql = Cow<'static, str>;

/// Which database, for the few things that are written once for each: the migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
}

/// An open database. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Sqlite(sqlite::Pools),
}

impl Database {
    /// Opens what `uri` names, without looking at its contents.
    pub(crate) async fn open(uri: &str) -> Result<Self> {
        if uri == "sqlite::memory:" {
            return sqlite::Pools::in_memory().await.map(Self::Sqlite);
        }
        if let Some(path) = uri.strip_prefix("sqlite://").filter(|path| path.starts_with('/')) {
            return sqlite::Pools::at(path.as_ref()).await.map(Self::Sqlite);
        }
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        let reason = match scheme {
            "postgres" | "postgresql" => {
                "PostgreSQL is not available yet in this version; use sqlite:///absolute/path"
            }
            _ => "use sqlite:///absolute/path or sqlite::memory:",
        };
        // What follows an @ has no password.
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        Err(Error::Address {
            uri: format!("{scheme}:{place}"),
            reason: reason.to_owned(),
        })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Begins a transaction that may write. It is rolled back when dropped.
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        match self {
            Self::Sqlite(pools) => pools.begin().await.map(Transaction::Sqlite),
        }
    }

    /// The rows of one reading statement outside any transaction.
    pub(crate) async fn fetch(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(pools) => pools.fetch(sql, params).await,
        }
    }

    /// Closes all connections after what they are doing.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pools) => pools.close().await,
        }
    }
}

/// A transaction that may write; see [`Database::begin`].
#[derive(Debug)]
pub(crate) enum Transaction {
    Sqlite(sqlite::Transaction),
}

impl Transaction {
    /// The rows that a statement returns.
    pub(crate) async fn fetch(&mut self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(tx) => tx.fetch(sql, params).await,
        }
    }

    /// The number of rows that a statement changed.
    pub(crate) async fn execute(&mut self, sql: Sql, params: Vec<Param>) -> Result<u64> {
        match self {
            Self::Sqlite(tx) => tx.execute(sql, params).await,
        }
    }

    /// Runs several statements without parameters.
    pub(crate) async fn run_script(&mut self, script: &'static str) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.run_script(script).await,
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
        }
    }
}
