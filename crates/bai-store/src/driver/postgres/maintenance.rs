//! Changing the schema: one process at a time, and without standing in anybody's way.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tokio::time::{Instant, sleep, timeout};

use super::Pool;
use super::failure::classify;
use crate::driver::LOCK_CLASS;
use crate::{Error, Result};

/// The turn at changing the schema, beside the locks of units of work.
const TURN: i32 = 0;
/// How long the others may take. Indexes of a large site take minutes.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const POLL: Duration = Duration::from_millis(100);

/// The turn of this process at changing the schema; it ends with the connection.
#[derive(Debug)]
pub(crate) struct Maintenance {
    connection: PgConnection,
    place: String,
}

impl Maintenance {
    /// Waits for the turn. By asking again and again: a session that waits for a lock has a snapshot, for whose end
    /// another one's `CREATE INDEX CONCURRENTLY` would wait.
    pub(in crate::driver) async fn begin(pool: &Pool) -> Result<Self> {
        let place = pool.place().to_owned();
        let connect = pool
            .connect_options()
            .clone()
            .options([("statement_timeout", "0")]);
        let connection = timeout(PATIENCE, connect.connect()).await;
        let connection = connection
            .map_err(|_| Error::Unavailable(format!("{place} does not answer").into()))?
            .map_err(|error| classify(error, &place))?;
        let mut maintenance = Self { connection, place };
        let end = Instant::now() + PATIENCE;
        while !maintenance.take_turn().await? {
            if Instant::now() > end {
                return Err(Error::Unavailable(
                    format!(
                        "another process has been changing the schema of {} for {PATIENCE:?}",
                        maintenance.place
                    )
                    .into(),
                ));
            }
            sleep(POLL).await;
        }
        Ok(maintenance)
    }

    async fn take_turn(&mut self) -> Result<bool> {
        let sql = "SELECT pg_try_advisory_lock($1, $2) AS taken";
        let row = sqlx::query(sql)
            .bind(LOCK_CLASS)
            .bind(TURN)
            .fetch_one(&mut self.connection)
            .await;
        let row = row.map_err(|error| classify(error, &self.place))?;
        row.try_get("taken").map_err(|error| classify(error, &self.place))
    }

    /// Makes the index unless it is there and whole. A crash leaves one behind that is not, which is made anew. Nobody is
    /// kept from writing meanwhile.
    pub(in crate::driver) async fn ensure_index(&mut self, name: &str, definition: &str) -> Result<()> {
        match self.is_index_valid(name).await? {
            Some(true) => return Ok(()),
            Some(false) => {
                self.run(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}"))
                    .await?
            }
            None => {}
        }
        tracing::info!(index = name, "an index is made");
        self.run(format!(
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} {definition}"
        ))
        .await
    }

    async fn is_index_valid(&mut self, name: &str) -> Result<Option<bool>> {
        let sql = "SELECT i.indisvalid AS valid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                   WHERE c.relname = $1 AND c.relnamespace = current_schema()::regnamespace";
        let row = sqlx::query(sql)
            .bind(name)
            .fetch_optional(&mut self.connection)
            .await;
        let row = row.map_err(|error| classify(error, &self.place))?;
        row.map(|row| row.try_get("valid"))
            .transpose()
            .map_err(|error| classify(error, &self.place))
    }

    async fn run(&mut self, sql: String) -> Result<()> {
        let result = sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut self.connection)
            .await;
        result.map(|_| ()).map_err(|error| classify(error, &self.place))
    }

    /// Gives the turn to the next one.
    pub(in crate::driver) async fn end(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "the connection of a change of the schema was lost");
        }
    }
}
