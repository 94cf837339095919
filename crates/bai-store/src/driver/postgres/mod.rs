//! PostgreSQL: a pool of connections which fails fast while the database is away.
//!
//! Invariants: sessions are in UTC and at READ COMMITTED, so that each statement sees what was committed before it and
//! what a unit of work decides by what it read needs a lock (`for_update`, a row that is counted up); every wait has a
//! deadline, on the server (`statement_timeout`, `lock_timeout`, `idle_in_transaction_session_timeout`) and here; a
//! connection with an unfinished answer is closed and never used again; what a broken connection cannot have done is
//! done again once (reads, and the beginning of a transaction), everything else is the caller's to repeat.
//!
//! Not here: which databases we accept (`schema`).

mod failure;
mod maintenance;
mod pool;
mod value;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;

use super::{Param, Sql};
use crate::store::StoreOptions;
use crate::{Error, Result};
use pool::Connection;

pub(super) use maintenance::Maintenance;
pub(super) use pool::Pool;
pub(super) use value::Row;

/// How long a unit of work whose process or network is gone may keep its locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
/// Statements kept prepared by each connection.
const PREPARED: usize = 256;

/// How to connect: what the address says, and what every session of ours has.
fn connect_options(uri: &str, options: &StoreOptions) -> Result<PgConnectOptions> {
    let parsed = PgConnectOptions::from_str(uri).map_err(|error| Error::Address {
        uri: super::without_password(uri),
        reason: format!("{error}; use postgres://user:password@host:port/database"),
    })?;
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    Ok(parsed
        .application_name(&options.application_name)
        .statement_cache_capacity(PREPARED)
        .options([
            ("timezone", "UTC".to_owned()),
            ("statement_timeout", milliseconds(options.statement_timeout)),
            ("lock_timeout", milliseconds(options.lock_timeout)),
            (
                "idle_in_transaction_session_timeout",
                milliseconds(options.statement_timeout.min(IDLE_IN_TRANSACTION)),
            ),
        ])
        // Otherwise what the database's administrator has set stands.
        .options(
            options
                .read_only
                .then_some(("default_transaction_read_only", "on")),
        )
        .disable_statement_logging())
}

/// `PostgreSQL at host:5432/database (<setting>)`, for messages.
fn place(connect: &PgConnectOptions, setting: &str) -> String {
    let host = match connect.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => connect.get_host().to_owned(),
    };
    let database = connect.get_database().unwrap_or(connect.get_username());
    format!(
        "PostgreSQL at {host}:{}/{database} ({setting})",
        connect.get_port()
    )
}

impl Pool {
    /// The rows of one reading statement.
    pub(super) async fn fetch(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<super::Row>> {
        let mut connection = self.get().await?;
        match connection.fetch(sql.clone(), &params).await {
            Err(error) if connection.is_broken() && error.is_retryable() && !connection.is_new() => {
                drop(connection);
                self.get().await?.fetch(sql, &params).await
            }
            result => result,
        }
    }

    pub(super) async fn begin(&self) -> Result<Transaction> {
        let mut connection = self.get().await?;
        let begun = match connection.run_script(BEGIN).await {
            Err(error) if connection.is_broken() && error.is_retryable() && !connection.is_new() => {
                drop(connection);
                connection = self.get().await?;
                connection.run_script(BEGIN).await
            }
            result => result,
        };
        begun.map(|()| Transaction {
            connection: Some(connection),
            has_failed: false,
        })
    }
}

/// A transaction. Dropping it rolls back.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Gone only while the transaction ends.
    connection: Option<Connection>,
    /// Whether a statement failed, after which the server answers COMMIT with a silent rollback.
    has_failed: bool,
}

impl Transaction {
    pub(super) async fn fetch(&mut self, sql: Sql, params: Vec<Param>) -> Result<Vec<super::Row>> {
        let result = self.connection()?.fetch(sql, &params).await;
        self.has_failed |= result.is_err();
        result
    }

    pub(super) async fn execute(&mut self, sql: Sql, params: Vec<Param>) -> Result<u64> {
        let result = self.connection()?.execute(sql, &params).await;
        self.has_failed |= result.is_err();
        result
    }

    pub(super) async fn run_script(&mut self, script: &'static str) -> Result<()> {
        let result = self.connection()?.run_script(script).await;
        self.has_failed |= result.is_err();
        result
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        if self.has_failed {
            return Err(Error::Database(
                "a unit of work cannot be committed after one of its statements failed".into(),
            ));
        }
        let result = self.connection()?.run_script("COMMIT").await;
        // Ended or broken: either way there is nothing left to roll back.
        self.connection = None;
        result
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        self.connection
            .as_mut()
            .ok_or_else(|| Error::Database("the unit of work has ended".into()))
    }
}

impl Drop for Transaction {
    /// Rolls back in the background, because dropping cannot wait. Where that is impossible the connection is closed, which
    /// rolls back as well.
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !connection.is_broken() => {
                runtime.spawn(async move {
                    if let Err(error) = connection.run_script("ROLLBACK").await {
                        tracing::debug!(%error, "a transaction was rolled back by closing its connection");
                        connection.close();
                    }
                });
            }
            _ => connection.close(),
        }
    }
}

impl Connection {
    async fn fetch(&mut self, sql: Sql, params: &[Param]) -> Result<Vec<super::Row>> {
        let query = value::query(sql, params)?;
        let rows = self.within(async |inner| query.fetch_all(inner).await).await?;
        Ok(rows
            .into_iter()
            .map(|row| super::Row::Postgres(Row::new(row)))
            .collect())
    }

    async fn execute(&mut self, sql: Sql, params: &[Param]) -> Result<u64> {
        let query = value::query(sql, params)?;
        let result = self.within(async |inner| query.execute(inner).await).await?;
        Ok(result.rows_affected())
    }

    async fn run_script(&mut self, script: &'static str) -> Result<()> {
        self.within(async |inner| sqlx::raw_sql(script).execute(inner).await)
            .await?;
        Ok(())
    }
}
