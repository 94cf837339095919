//! Opening, reading and the unit of work.
//!
//! Invariant: a [`Tx`] is short. It is never held across a call to an agent, the configuration store or the broker, and
//! what it wants to read it reads itself: SQLite has one writer, and in memory the readers wait for it.
//!
//! Not here: the operations, which are methods of [`Reader`] and [`Tx`] in the file of their resource.

use std::ops::Deref;

use tokio::sync::Mutex;

use crate::catalog;
use crate::driver::{Database, Param, Row, Sql, Transaction};
use crate::{Result, schema};

/// An open database with the current schema. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens a database and brings its schema up to date: `sqlite:///absolute/path` (made if missing) or
    /// `sqlite::memory:`.
    ///
    /// # Errors
    /// [`crate::Error::Address`] for an address that cannot be used, [`crate::Error::Schema`] for a database that this
    /// program must not touch.
    pub async fn open(uri: &str) -> Result<Self> {
        let database = Database::open(uri).await?;
        schema::migrate(&database).await?;
        Ok(Self { database })
    }

    /// Begins a unit of work, when no other one is writing.
    pub async fn begin(&self) -> Result<Tx> {
        let transaction = self.database.begin().await?;
        Ok(Tx(Reader(Executor::Transaction(Mutex::new(transaction)))))
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
        catalog::check_lengths(table, &values)?;
        let columns: Vec<String> = values.iter().map(|(column, _)| format!("\"{column}\"")).collect();
        let places: Vec<String> = (1..=values.len()).map(|place| format!("${place}")).collect();
        let sql = format!(
            "INSERT INTO \"{table}\" ({}) VALUES ({}) {rest}",
            columns.join(", "),
            places.join(", "),
        );
        let params = values.into_iter().map(|(_, param)| param).collect();
        Ok(self.execute(sql, params).await? > 0)
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
