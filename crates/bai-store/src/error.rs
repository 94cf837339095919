//! What can go wrong with a database, sorted by what the caller can do about it.
//!
//! Not here: how each database says it (`driver`).

use std::error::Error as StdError;

/// A cause that only the log is interested in.
pub(crate) type Source = Box<dyn StdError + Send + Sync>;

/// The result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The family of a violated constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// Another row has this key.
    Unique,
    /// A row that is referred to does not exist, or one that is to go is referred to.
    ForeignKey,
    /// A mandatory column has no value.
    NotNull,
    /// Any other check.
    Check,
}

/// A failed operation. The transaction it belonged to should be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A constraint refused the write. `constraint` is its name in the 19.06 schema (`data-model.md` 3), or the kind's
    /// where the database does not tell (foreign keys on SQLite).
    #[error("the database refuses the change: {constraint}")]
    Conflict {
        /// What kind of constraint.
        kind: ConflictKind,
        /// Which one.
        constraint: String,
    },
    /// A text is longer than its column; the message is what 19.06 clients know.
    #[error("value too long for type character varying({limit}) ({table}.{column})")]
    TooLong {
        /// The table of the column.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// Characters that fit.
        limit: usize,
    },
    /// A stored value that cannot be read as what its column holds.
    #[error("unreadable value in column {column}")]
    Unreadable {
        /// The column, or its name in the query.
        column: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// A fixture that cannot be loaded (`data-model.md` 9).
    #[error("unusable fixture: {0}")]
    Fixture(String),
    /// The address does not name a database that can be used.
    #[error("cannot use the database address {uri}: {reason}")]
    Address {
        /// The address without a password.
        uri: String,
        /// Why not, and what would work.
        reason: String,
    },
    /// The database holds a schema that this program must not touch; the text says what to do.
    #[error("{0}")]
    Schema(String),
    /// A value that its column cannot keep, such as a text with a NUL or a number that is too large.
    #[error("a value cannot be stored: {0}")]
    Unstorable(String),
    /// Another unit of work was in the way, and this one was given up for it (deadlock, waiting for a lock). Nothing of it
    /// was done; the same may be tried again at once.
    #[error("another change was in the way: {0}")]
    Contention(Source),
    /// Busy, full or away: the same operation may succeed later. The text names the database and its setting.
    #[error("the database is not available at the moment: {0}")]
    Unavailable(Source),
    /// The lease of the work that this unit of work does has gone to somebody else ([`crate::Tx::fence`]).
    #[error("the lease {name} is held by somebody else now")]
    Fenced {
        /// The lease.
        name: String,
    },
    /// Anything else that the database reports.
    #[error("the database failed: {0}")]
    Database(Source),
}

impl Error {
    /// Whether the whole transaction may be tried again with a chance of success.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contention(_))
    }

    /// Whether this is a violation of the named constraint.
    pub fn is_conflict_on(&self, name: &str) -> bool {
        matches!(self, Self::Conflict { constraint, .. } if constraint == name)
    }

    pub(crate) fn unreadable(column: &str, source: impl Into<Source>) -> Self {
        Self::Unreadable {
            column: column.to_owned(),
            source: source.into(),
        }
    }
}
