//! The file of the embedded store: one small SQLite database, written only, and read once when it is opened.
//!
//! Invariants: what [`Journal::write`] has returned from survives the loss of power; one process at a time holds the file;
//! the stored revision only grows. The file is readable by its owner only, because registry passwords are in it.
//!
//! Not here: any question that a reader asks (`tree.rs` answers from memory).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};

use super::draft::Draft;
use super::tree::{Entry, Lease, Tree};
use super::{LeaseId, Revision};
use crate::expiry::deadline;
use crate::{Error, Result, Terminal};

/// `baik` in ASCII: says that a SQLite file is one of these.
const APPLICATION_ID: i64 = 0x6261_696b;
/// Version of the tables below. A file with a higher one is refused.
const VERSION: i64 = 1;
const SCHEMA: &str = "
    PRAGMA application_id = 0x6261696b;
    PRAGMA user_version = 1;
    CREATE TABLE entry (
        key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
    CREATE TABLE meta (
        only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, last_lease INTEGER NOT NULL
    );
    INSERT INTO meta VALUES (1, 0, 0);
";
/// How long to wait for a predecessor that is about to close the file.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// `None` only while a lost connection is being replaced.
    connection: Option<SqliteConnection>,
}

impl Journal {
    /// Opens the file; makes it when missing.
    pub async fn open(path: &Path) -> Result<Self> {
        let made = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        made.map_err(|error| Error::Retryable(format!("cannot open {}: {error}", path.display())))?;
        let mut journal = Self {
            path: path.to_owned(),
            connection: None,
        };
        journal.connect().await?;
        Ok(journal)
    }

    async fn connect(&mut self) -> Result<&mut SqliteConnection> {
        if self.connection.is_none() {
            let opened = open_file(&self.path).await;
            self.connection = Some(opened.map_err(|trouble| trouble.explain(&self.path))?);
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Error::Retryable("the configuration store is closed".to_owned()))
    }

    /// Reads everything. Leases get their full ttl again, as if kept alive now: nobody could, while the file was closed.
    pub async fn load(&mut self, now: DateTime<Utc>) -> Result<Tree> {
        let connection = self.connect().await?;
        let read = read_all(connection, now).await;
        read.map_err(|error| Trouble::from(error).explain(&self.path))
    }

    /// Makes a draft durable, as one commit.
    pub async fn write(&mut self, draft: &Draft) -> Result<()> {
        let connection = self.connect().await?;
        let written = write_draft(connection, draft).await;
        written.map_err(|error| Trouble::from(error).explain(&self.path))
    }

    /// Gives up the connection, after which its state is not known, and reads what the file really holds.
    pub async fn recover(&mut self, now: DateTime<Utc>) -> Result<Tree> {
        self.disconnect().await;
        self.load(now).await
    }

    /// Closes the file.
    pub async fn close(mut self) {
        self.disconnect().await;
    }

    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the configuration store's file was not closed properly; the next start recovers it");
        }
    }
}

/// Why the file could not be used, before it has a name and advice.
enum Trouble {
    Database(sqlx::Error),
    NotOurs,
    Newer(i64),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl Trouble {
    fn explain(self, path: &Path) -> Error {
        const BUSY: i64 = 5;
        const CORRUPT: i64 = 11;
        const NOT_A_DATABASE: i64 = 26;
        let path = path.display();
        let error = match self {
            Self::NotOurs => {
                return Terminal::Unusable(format!("{path} is not a configuration store")).into();
            }
            Self::Newer(version) => {
                return Terminal::Unusable(format!(
                    "{path} has format {version}, written by a newer version; this one knows {VERSION}"
                ))
                .into();
            }
            Self::Database(error) => error,
        };
        let code = error.as_database_error().and_then(|error| error.code());
        // The low byte is the primary code, the rest a refinement.
        match code
            .and_then(|code| code.parse::<i64>().ok())
            .map(|code| code & 0xff)
        {
            Some(BUSY) => Error::Retryable(format!("{path} is in use by another process")),
            Some(NOT_A_DATABASE) => Terminal::Unusable(format!("{path} is not a configuration store")).into(),
            Some(CORRUPT) => {
                Terminal::Unusable(format!("{path} is damaged ({error}); restore it or remove it")).into()
            }
            _ => Error::Retryable(format!("cannot use {path}: {error}")),
        }
    }
}

/// Connects, and changes nothing in the file before it is known to be ours or empty.
async fn open_file(path: &Path) -> std::result::Result<SqliteConnection, Trouble> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .locking_mode(SqliteLockingMode::Exclusive)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE)
        .disable_statement_logging();
    let mut connection = options.connect().await?;
    let number = |sql: &'static str| sqlx::query_scalar::<_, i64>(sql);
    let tables = number("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut connection)
        .await?;
    let version = number("PRAGMA user_version").fetch_one(&mut connection).await?;
    let application = number("PRAGMA application_id").fetch_one(&mut connection).await?;
    let fresh = tables == 0 && application == 0;
    if !fresh && application != APPLICATION_ID {
        return Err(Trouble::NotOurs);
    }
    if version > VERSION {
        return Err(Trouble::Newer(version));
    }
    // Not among the options above: this is written into the file.
    sqlx::query("PRAGMA journal_mode = WAL")
        .execute(&mut connection)
        .await?;
    if fresh {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(connection)
}

async fn read_all(connection: &mut SqliteConnection, now: DateTime<Utc>) -> sqlx::Result<Tree> {
    let (revision, last_lease): (i64, i64) = sqlx::query_as("SELECT revision, last_lease FROM meta")
        .fetch_one(&mut *connection)
        .await?;
    let rows: Vec<(String, String, i64, Option<i64>)> =
        sqlx::query_as("SELECT key, value, revision, lease FROM entry")
            .fetch_all(&mut *connection)
            .await?;
    let entries = rows.into_iter().map(|(key, value, revision, lease)| {
        (
            key,
            Entry {
                value,
                revision: Revision(revision),
                lease: lease.map(LeaseId),
            },
        )
    });
    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT id, ttl_ms FROM lease")
        .fetch_all(&mut *connection)
        .await?;
    let leases = rows.into_iter().map(|(id, ttl_ms)| {
        let ttl = Duration::from_millis(u64::try_from(ttl_ms).unwrap_or(0));
        (
            LeaseId(id),
            Lease {
                ttl,
                expires_at: deadline(now, ttl),
            },
        )
    });
    Ok(Tree::restored(
        Revision(revision),
        LeaseId(last_lease),
        entries.collect::<BTreeMap<_, _>>(),
        leases.collect::<BTreeMap<_, _>>(),
    ))
}

async fn write_draft(connection: &mut SqliteConnection, draft: &Draft) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    for (key, entry) in &draft.entries {
        let query = match entry {
            Some(entry) => sqlx::query(
                "INSERT INTO entry (key, value, revision, lease) VALUES ($1, $2, $3, $4) ON CONFLICT (key)
                 DO UPDATE SET value = excluded.value, revision = excluded.revision, lease = excluded.lease",
            )
            .bind(key)
            .bind(&entry.value)
            .bind(entry.revision.0)
            .bind(entry.lease.map(|lease| lease.0)),
            None => sqlx::query("DELETE FROM entry WHERE key = $1").bind(key),
        };
        query.execute(&mut *transaction).await?;
    }
    for (id, lease) in &draft.leases {
        let query = match lease {
            Some(lease) => sqlx::query("INSERT OR REPLACE INTO lease (id, ttl_ms) VALUES ($1, $2)")
                .bind(id.0)
                .bind(i64::try_from(lease.ttl.as_millis()).unwrap_or(i64::MAX)),
            None => sqlx::query("DELETE FROM lease WHERE id = $1").bind(id.0),
        };
        query.execute(&mut *transaction).await?;
    }
    sqlx::query("UPDATE meta SET revision = $1, last_lease = $2")
        .bind(draft.revision.0)
        .bind(draft.last_lease.0)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
