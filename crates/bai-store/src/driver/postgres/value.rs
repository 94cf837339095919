//! Values on their way in and out.
//!
//! Parameters are sent in PostgreSQL's binary forms with their types, but for enums: those go without a type and the
//! server takes the one of the column. One of the enums has two possible names (`data-model.md` 1), which therefore
//! matter to nobody.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo, Postgres};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Row as _, Type};
use uuid::Uuid;

use super::{Param, Sql};
use crate::{Error, Result};

/// A type that the server infers.
const INFERRED: PgTypeInfo = PgTypeInfo::with_oid(Oid(0));

/// Statements are literals of this crate, put together with nothing but placeholders and names of the schema; values
/// only ever travel as parameters.
pub(super) fn query(sql: Sql, params: &[Param]) -> Result<Query<'static, Postgres, PgArguments>> {
    let mut arguments = PgArguments::default();
    for param in params {
        arguments
            .add(Bound(param))
            .map_err(|error| Error::Unstorable(error.to_string()))?;
    }
    Ok(sqlx::query_with(AssertSqlSafe(sql), arguments))
}

struct Bound<'a>(&'a Param);

impl Type<Postgres> for Bound<'_> {
    fn type_info() -> PgTypeInfo {
        INFERRED
    }
}

impl Encode<'_, Postgres> for Bound<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match self.0 {
            Param::Text(value) | Param::Enum(_, value) => encode(value.as_ref(), buffer),
            Param::Integer(value) => encode(value.as_ref(), buffer),
            Param::Boolean(value) => encode(value.as_ref(), buffer),
            Param::Uuid(value) => encode(value.as_ref(), buffer),
            Param::Time(value) => encode(value.as_ref(), buffer),
            Param::Json(value) => encode(value.as_ref().map(Json).as_ref(), buffer),
            Param::Texts(value) => encode(value.as_ref(), buffer),
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(match self.0 {
            Param::Text(_) => <String as Type<Postgres>>::type_info(),
            Param::Integer(_) => <i64 as Type<Postgres>>::type_info(),
            Param::Boolean(_) => <bool as Type<Postgres>>::type_info(),
            Param::Uuid(_) => <Uuid as Type<Postgres>>::type_info(),
            Param::Time(_) => <DateTime<Utc> as Type<Postgres>>::type_info(),
            Param::Json(_) => <Json<Value> as Type<Postgres>>::type_info(),
            Param::Texts(_) => <Vec<String> as Type<Postgres>>::type_info(),
            Param::Enum(..) => INFERRED,
        })
    }
}

fn encode<'q, T: Encode<'q, Postgres>>(
    value: Option<&T>,
    buffer: &mut PgArgumentBuffer,
) -> Result<IsNull, BoxDynError> {
    value.map_or(Ok(IsNull::Yes), |value| value.encode_by_ref(buffer))
}

/// One row of a result.
#[derive(Debug)]
pub(crate) struct Row(PgRow);

impl Row {
    pub(super) fn new(row: PgRow) -> Self {
        Self(row)
    }

    /// `varchar`, `text`, and the name of an enum's member.
    pub(in crate::driver) fn text(&self, column: &str) -> Result<Option<String>> {
        self.read(column)
    }

    /// Integers of any width.
    pub(in crate::driver) fn integer(&self, column: &str) -> Result<Option<i64>> {
        self.read(column)
    }

    pub(in crate::driver) fn boolean(&self, column: &str) -> Result<Option<bool>> {
        self.read(column)
    }

    pub(in crate::driver) fn uuid(&self, column: &str) -> Result<Option<Uuid>> {
        self.read(column)
    }

    pub(in crate::driver) fn time(&self, column: &str) -> Result<Option<DateTime<Utc>>> {
        self.read(column)
    }

    pub(in crate::driver) fn json(&self, column: &str) -> Result<Option<Value>> {
        Ok(self.read::<Json<Value>>(column)?.map(|Json(value)| value))
    }

    /// NULL elements, which old rows may have, are nothing.
    pub(in crate::driver) fn texts(&self, column: &str) -> Result<Option<Vec<String>>> {
        let texts: Option<Vec<Option<String>>> = self.read(column)?;
        Ok(texts.map(|texts| texts.into_iter().flatten().collect()))
    }

    fn read<'r, T: Decode<'r, Postgres> + Type<Postgres>>(&'r self, column: &str) -> Result<Option<T>> {
        self.0
            .try_get_unchecked(column)
            .map_err(|error| Error::unreadable(column, error))
    }
}
