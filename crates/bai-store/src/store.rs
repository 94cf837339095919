//! Opening, reading and the unit of work.
//!
//! Invariant: a [`Tx`] is short. It is never held across a call to an agent, the configuration store or the broker, and
//! what it wants to read it reads itself: SQLite has one writer, and in memory the readers wait for it.
//!
//! Not here: the operations, which are methods of [`Reader`] and [`Tx`] in the file of their resource.

use std::ops::Deref;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::catalog;
use crate::driver::{Database, Dialect, Param, Row, Sql, Transaction};
use crate::{Result, schema};

/// An open database with the current schema. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
}

/// How to use a database. Of all this, SQLite, which is part of the process, heeds `read_only` only.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where the address comes from, for messages: `[db] addr in /etc/backend.ai/manager.toml`.
    pub setting: String,
    /// What the database's administrator sees of us.
    pub application_name: String,
    /// Connections at most.
    pub connections: usize,
    /// How long a caller waits for a connection, be it that all are busy or that the database does not answer.
    pub connect_deadline: Duration,
    /// How long a statement may run before the database gives it up; a unit of work may be idle for as long, and for 10 s
    /// at most.
    pub statement_timeout: Duration,
    /// How long a statement waits for another unit of work.
    pub lock_timeout: Duration,
    /// Whether the database itself shall refuse every change.
    pub read_only: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            setting: "the database address".to_owned(),
            application_name: "bai".to_owned(),
            connections: 16,
            connect_deadline: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            read_only: false,
        }
    }
}

impl Store {
    /// Opens a database and brings its schema up to date, with [`StoreOptions::default`].
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open(uri: &str) -> Result<Self> {
        Self::open_with(uri, &StoreOptions::default()).await
    }

    /// Opens a database and brings its schema up to date: `postgres://user:password@host:port/database` (also
    /// `postgresql://`; a host of `%2Frun%2Fpostgresql` or a parameter `host=/run/postgresql` is a unix socket;
    /// `sslmode` and `sslrootcert` are understood), `sqlite:///absolute/path` (made if missing) or `sqlite::memory:`.
    /// Several processes may do so at once.
    ///
    /// # Errors
    /// [`crate::Error::Address`] for an address that cannot be used, [`crate::Error::Schema`] for a database that this
    /// program must not touch.
    pub async fn open_with(uri: &str, options: &StoreOptions) -> Result<Self> {
        let database = Database::open(uri, options).await?;
        schema::migrate(&database).await?;
        Ok(Self { database })
    }

    /// Opens a database that exists and changes nothing, to look at it ([`Reader::schema_report`]). Operations may be used
    /// once the report says that the schema is ours.
    ///
    /// # Errors
    /// [`crate::Error::Address`].
    pub async fn open_unchanged(uri: &str, options: &StoreOptions) -> Result<Self> {
        let database = Database::open_existing(uri, options).await?;
        Ok(Self { database })
    }

    /// Begins a unit of work: on SQLite when no other one is writing, on PostgreSQL beside others, which then see what it
    /// locks ([`Tx::lock_placement`]).
    ///
    /// On PostgreSQL an operation that fails spoils the unit of work, and one that fails with
    /// [`crate::Error::Contention`] may be tried again from the beginning.
    pub async fn begin(&self) -> Result<Tx> {
        let transaction = self.database.begin().await?;
        Ok(Tx(Reader(Executor::Transaction(Mutex::new(transaction)))))
    }

    /// Whether other processes may use the same database: PostgreSQL is a server for many, and a file of SQLite is part of
    /// one process.
    pub fn is_shared(&self) -> bool {
        self.database.dialect() == Dialect::Postgres
    }

    /// Reads what is committed, each operation for itself.
    pub fn reader(&self) -> Reader {
        Reader(Executor::Database(self.database.clone()))
    }

    /// Closes the database after the units of work that are open; nothing works afterwards.
    pub async fn close(&self) {
        self.database.close().await;
    }
}

#[derive(Debug)]
enum Executor {
    Database(Database),
    Transaction(Mutex<Transaction>),
}

/// Every operation that reads, as methods: of what is committed, or of what a [`Tx`] sees.
#[derive(Debug)]
pub struct Reader(Executor);

impl Reader {
    pub(crate) async fn dialect(&self) -> Dialect {
        match &self.0 {
            Executor::Database(database) => database.dialect(),
            Executor::Transaction(transaction) => transaction.lock().await.dialect(),
        }
    }

    pub(crate) async fn fetch(&self, sql: impl Into<Sql>, params: Vec<Param>) -> Result<Vec<Row>> {
        match &self.0 {
            Executor::Database(database) => database.fetch(sql.into(), params).await,
            Executor::Transaction(transaction) => transaction.lock().await.fetch(sql.into(), params).await,
        }
    }

    /// All rows of a statement, each read by `read`.
    pub(crate) async fn list<T>(
        &self,
        sql: impl Into<Sql>,
        params: Vec<Param>,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.fetch(sql, params).await?.iter().map(read).collect()
    }

    /// The first row of a statement, read by `read`.
    pub(crate) async fn first<T>(
        &self,
        sql: impl Into<Sql>,
        params: Vec<Param>,
        read: impl FnOnce(&Row) -> Result<T>,
    ) -> Result<Option<T>> {
        self.fetch(sql, params).await?.first().map(read).transpose()
    }

    /// The number in the column `n` of the only row of a statement.
    pub(crate) async fn count(&self, sql: impl Into<Sql>, params: Vec<Param>) -> Result<i64> {
        Ok(self.first(sql, params, |row| row.get("n")).await?.unwrap_or(0))
    }
}

/// A unit of work: every change in it becomes visible and durable together, or not at all. Dropping it rolls back.
///
/// Dereferences to [`Reader`] for the operations that read.
#[derive(Debug)]
pub struct Tx(Reader);

impl Deref for Tx {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.0
    }
}

impl Tx {
    /// Makes the changes durable and visible.
    ///
    /// # Errors
    /// After an error the changes may not be assumed to be lost: look again.
    pub async fn commit(self) -> Result<()> {
        match self.0.0 {
            Executor::Transaction(transaction) => transaction.into_inner().commit().await,
            Executor::Database(_) => unreachable!("only Store::begin makes a Tx"),
        }
    }

    /// What a `SELECT` says to keep its rows from being changed or locked by others until the unit of work ends. SQLite has
    /// one writer and needs nothing. Rows are locked in the order keypair, kernel, agent, and several of a kind in the order of
    /// their keys.
    pub(crate) fn for_update(&mut self) -> &'static str {
        self.on_postgres(" FOR NO KEY UPDATE")
    }

    /// What a `SELECT` says to keep its rows from being changed by others until the unit of work ends.
    pub(crate) fn for_share(&mut self) -> &'static str {
        self.on_postgres(" FOR SHARE")
    }

    fn on_postgres(&mut self, clause: &'static str) -> &'static str {
        match &mut self.0.0 {
            Executor::Transaction(transaction) => match transaction.get_mut().dialect() {
                Dialect::Postgres => clause,
                Dialect::Sqlite => "",
            },
            Executor::Database(_) => unreachable!("only Store::begin makes a Tx"),
        }
    }

    pub(crate) async fn lock_fixtures(&mut self) -> Result<()> {
        match &mut self.0.0 {
            Executor::Transaction(transaction) => transaction.get_mut().lock_fixtures().await,
            Executor::Database(_) => unreachable!("only Store::begin makes a Tx"),
        }
    }

    /// The number of rows that a statement changes.
    pub(crate) async fn execute(&mut self, sql: impl Into<Sql>, params: Vec<Param>) -> Result<u64> {
        match &mut self.0.0 {
            Executor::Transaction(transaction) => transaction.get_mut().execute(sql.into(), params).await,
            Executor::Database(_) => unreachable!("only Store::begin makes a Tx"),
        }
    }

    /// Inserts a row. `rest` follows the values, for example `ON CONFLICT … DO NOTHING`. Answers whether there is a new
    /// row.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`], [`crate::Error::TooLong`].
    pub(crate) async fn insert(
        &mut self,
        table: &'static str,
        values: Vec<(&'static str, Param)>,
        rest: &str,
    ) -> Result<bool> {
        let (sql, params) = insertion(table, vec![values], rest)?;
        Ok(self.execute(sql, params).await? > 0)
    }

    /// Inserts rows, with the same columns each, in one statement. Answers what `rest` says to return.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`], [`crate::Error::TooLong`].
    pub(crate) async fn insert_all(
        &mut self,
        table: &'static str,
        rows: Vec<Vec<(&'static str, Param)>>,
        rest: &str,
    ) -> Result<Vec<Row>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (sql, params) = insertion(table, rows, rest)?;
        self.fetch(sql, params).await
    }

    /// Updates the rows that `condition` with its parameters `$1…` selects, and answers how many there were.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`], [`crate::Error::TooLong`].
    pub(crate) async fn update(
        &mut self,
        table: &'static str,
        values: Vec<(&'static str, Param)>,
        condition: &str,
        mut params: Vec<Param>,
    ) -> Result<u64> {
        catalog::check_lengths(table, &values)?;
        let mut assignments = Vec::with_capacity(values.len());
        for (column, param) in values {
            params.push(param);
            assignments.push(format!("\"{column}\" = ${}", params.len()));
        }
        let sql = format!(
            "UPDATE \"{table}\" SET {} WHERE {condition}",
            assignments.join(", ")
        );
        self.execute(sql, params).await
    }
}

/// `($1, $2), ($3, $4)`: placeholders for `rows` rows of `columns` values.
pub(crate) fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (1..=columns)
            .map(|column| format!("${}", row * columns + column))
            .collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// The statement that inserts rows, of which there is at least one, with the same columns each.
fn insertion(
    table: &'static str,
    rows: Vec<Vec<(&'static str, Param)>>,
    rest: &str,
) -> Result<(String, Vec<Param>)> {
    for values in &rows {
        catalog::check_lengths(table, values)?;
    }
    let columns = rows.first().into_iter().flatten();
    let columns: Vec<String> = columns.map(|(column, _)| format!("\"{column}\"")).collect();
    let sql = format!(
        "INSERT INTO \"{table}\" ({}) VALUES {} {rest}",
        columns.join(", "),
        places(rows.len(), columns.len()),
    );
    let params = rows.into_iter().flatten().map(|(_, param)| param).collect();
    Ok((sql, params))
}
