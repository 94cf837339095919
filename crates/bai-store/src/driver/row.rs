//! Values on their way out of a row, by column name.

use bai_model::policy::DefaultForUnspecified;
use bai_model::{
    AccessKey, AgentId, AgentStatus, GroupId, KernelId, KernelStatus, ResourceSlot, SecretKey, UserId,
    UserRole, VFolderId, VFolderPermission,
};
use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{postgres, sqlite};
use crate::{Error, Result};

/// One row of a result.
#[derive(Debug)]
pub(crate) enum Row {
    Postgres(postgres::Row),
    Sqlite(sqlite::Row),
}

impl Row {
    /// The value of a column that has one.
    pub(crate) fn get<T: Column>(&self, column: &str) -> Result<T> {
        self.opt(column)?
            .ok_or_else(|| Error::unreadable(column, "there is no value"))
    }

    /// The value of a column that may be NULL.
    pub(crate) fn opt<T: Column>(&self, column: &str) -> Result<Option<T>> {
        T::read(self, column)
    }

    fn text(&self, column: &str) -> Result<Option<String>> {
        match self {
            Self::Postgres(row) => row.text(column),
            Self::Sqlite(row) => row.text(column),
        }
    }

    fn integer(&self, column: &str) -> Result<Option<i64>> {
        match self {
            Self::Postgres(row) => row.integer(column),
            Self::Sqlite(row) => row.integer(column),
        }
    }

    fn boolean(&self, column: &str) -> Result<Option<bool>> {
        match self {
            Self::Postgres(row) => row.boolean(column),
            Self::Sqlite(row) => row.boolean(column),
        }
    }

    fn uuid(&self, column: &str) -> Result<Option<Uuid>> {
        match self {
            Self::Postgres(row) => row.uuid(column),
            Self::Sqlite(row) => row.uuid(column),
        }
    }

    fn time(&self, column: &str) -> Result<Option<DateTime<Utc>>> {
        match self {
            Self::Postgres(row) => row.time(column),
            Self::Sqlite(row) => row.time(column),
        }
    }

    fn json(&self, column: &str) -> Result<Option<Value>> {
        match self {
            Self::Postgres(row) => row.json(column),
            Self::Sqlite(row) => row.json(column),
        }
    }

    fn texts(&self, column: &str) -> Result<Option<Vec<String>>> {
        match self {
            Self::Postgres(row) => row.texts(column),
            Self::Sqlite(row) => row.texts(column),
        }
    }
}

/// A type that can be read from a column.
pub(crate) trait Column: Sized {
    fn read(row: &Row, column: &str) -> Result<Option<Self>>;
}

macro_rules! column {
    ($($type:ty: $getter:ident => $wrap:expr;)*) => {
        $(impl Column for $type {
            fn read(row: &Row, column: &str) -> Result<Option<Self>> {
                Ok(row.$getter(column)?.map($wrap))
            }
        })*
    };
}

column! {
    String: text => |text| text;
    AccessKey: text => AccessKey;
    SecretKey: text => SecretKey::new;
    AgentId: text => AgentId;
    i64: integer => |number| number;
    bool: boolean => |truth| truth;
    Uuid: uuid => |id| id;
    KernelId: uuid => KernelId;
    UserId: uuid => UserId;
    GroupId: uuid => GroupId;
    VFolderId: uuid => VFolderId;
    DateTime<Utc>: time => |at| at;
    Vec<String>: texts => |texts| texts;
}

macro_rules! parsed_column {
    ($($type:ty),*) => {
        $(impl Column for $type {
            fn read(row: &Row, column: &str) -> Result<Option<Self>> {
                row.text(column)?
                    .map(|text| text.parse().map_err(|error| Error::unreadable(column, error)))
                    .transpose()
            }
        })*
    };
}

parsed_column!(
    AgentStatus,
    KernelStatus,
    UserRole,
    VFolderPermission,
    DefaultForUnspecified
);

impl Column for u16 {
    /// A port. Negative or too large ones are unreadable.
    fn read(row: &Row, column: &str) -> Result<Option<Self>> {
        let number = row.integer(column)?;
        number
            .map(Self::try_from)
            .transpose()
            .map_err(|error| Error::unreadable(column, error))
    }
}

impl Column for Value {
    /// The original writes JSON `null` for SQL NULL (`data-model.md` 4).
    fn read(row: &Row, column: &str) -> Result<Option<Self>> {
        Ok(row.json(column)?.filter(|value| !value.is_null()))
    }
}

impl Column for ResourceSlot {
    /// NULL and unusable amounts fail nothing (DM-8).
    fn read(row: &Row, column: &str) -> Result<Option<Self>> {
        let value = match row.json(column) {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(column, %error, "stored resource amounts are unreadable and ignored");
                return Ok(Some(Self::default()));
            }
        };
        let (slots, garbage) = Self::from_stored(&value);
        if !garbage.is_empty() {
            tracing::warn!(column, slots = ?garbage, "stored resource amounts are unusable and ignored");
        }
        Ok(Some(slots))
    }
}
