//! What an error of PostgreSQL means, by SQLSTATE and never by text.

use std::io::ErrorKind;

use sqlx::postgres::PgDatabaseError;

use crate::{ConflictKind, Error};

/// What became of an attempt to connect.
pub(super) enum Failure {
    /// The server does not want us; the text says what to change.
    Refused(String),
    /// Nobody is there, or not yet.
    Lost,
    /// There, but without a place for us.
    Other,
}

fn code(error: &sqlx::Error) -> Option<&str> {
    let sqlx::Error::Database(inner) = error else {
        return None;
    };
    Some(inner.try_downcast_ref::<PgDatabaseError>()?.code())
}

/// Whether the connection is of no use any more.
pub(super) fn is_loss(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => match code(error) {
            // Shut down, crashed, starting, database dropped, idle for too long, and failures of the connection.
            Some(code) => {
                code.starts_with("08") || code.starts_with("57P") || code == "25P03" || code == "25P04"
            }
            None => false,
        },
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
        _ => false,
    }
}

/// Sorts an error of connecting.
pub(super) fn of_connecting(error: &sqlx::Error) -> Failure {
    // What rustls does not believe arrives as data that is not valid.
    let is_disbelief = matches!(error, sqlx::Error::Io(inner) if inner.kind() == ErrorKind::InvalidData);
    if is_disbelief || matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_)) {
        return Failure::Refused(format!("{error}; check sslmode and sslrootcert in the address"));
    }
    match code(error) {
        Some("28P01" | "28000") => Failure::Refused(format!("{error}; check the user and the password")),
        Some("3D000") => Failure::Refused(format!("{error}; create it, or correct the name")),
        Some("42501") => Failure::Refused(format!("{error}; grant CONNECT")),
        _ if is_loss(error) => Failure::Lost,
        Some(_) => Failure::Other,
        None => Failure::Lost,
    }
}

/// Sorts an error of a statement.
pub(super) fn classify(error: sqlx::Error, place: &str) -> Error {
    let Some(code) = code(&error) else {
        return if is_loss(&error) {
            Error::Unavailable(format!("the connection to {place} broke: {error}").into())
        } else {
            Error::Database(error.into())
        };
    };
    let kind = match code {
        "23505" => ConflictKind::Unique,
        "23503" => ConflictKind::ForeignKey,
        "23502" => ConflictKind::NotNull,
        "23514" | "23P01" => ConflictKind::Check,
        // Serialization failure, deadlock, lock_timeout.
        "40001" | "40P01" | "55P03" => return Error::Contention(error.into()),
        // A NUL in a text or in JSON, half of a surrogate pair; too long; too large a number.
        "22021" | "22P05" | "22001" | "22003" => return Error::Unstorable(error.to_string()),
        // Cancelled by statement_timeout; in recovery; out of something.
        "57014" | "25006" => return Error::Unavailable(format!("{place}: {error}").into()),
        code if code.starts_with("53") || is_loss(&error) => {
            return Error::Unavailable(format!("{place}: {error}").into());
        }
        _ => return Error::Database(error.into()),
    };
    let constraint = constraint_of(&error);
    Error::Conflict { kind, constraint }
}

/// The name of the violated constraint; of a mandatory column, its table and name.
fn constraint_of(error: &sqlx::Error) -> String {
    let sqlx::Error::Database(inner) = error else {
        return String::new();
    };
    let Some(inner) = inner.try_downcast_ref::<PgDatabaseError>() else {
        return String::new();
    };
    match (inner.constraint(), inner.table(), inner.column()) {
        (Some(name), ..) => name.to_owned(),
        (None, Some(table), Some(column)) => format!("{table}.{column}"),
        _ => inner.message().to_owned(),
    }
}
