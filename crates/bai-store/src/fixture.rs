//! Fixture files: rows as JSON, `{table: [{column: value}]}`, with the recommendations of `data-model.md` 9.
//!
//! Differences from the original: loading is idempotent and one transaction, absent columns get the defaults of
//! `data-model.md` 4 (DM-2, DM-3, DM-4), amounts are normalised (DM-5), `vfolder_attachment` is a table like others.
//!
//! Not here: how a password is hashed.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::catalog::{self, Kind, Table};
use crate::driver::Param;
use crate::{Error, Result, Tx};

/// What loading a fixture did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// New rows.
    pub inserted: u64,
    /// Rows that were there already, by key, and were left as they are.
    pub skipped: u64,
}

/// A checked fixture with hashed passwords, ready to be loaded.
#[derive(Debug)]
pub struct Fixture(Vec<FixtureRow>);

#[derive(Debug)]
struct FixtureRow {
    table: &'static Table,
    values: Vec<(&'static str, Param)>,
}

/// Loads a fixture within a unit of work; `at` is when its rows are made, unless they say so themselves. Hashing happens
/// first, while the unit of work is open: where that matters, use [`Fixture::parse`] before and [`Fixture::load`] then.
///
/// # Errors
/// As [`Fixture::parse`] and [`Fixture::load`].
pub async fn populate<E: std::fmt::Display>(
    tx: &mut Tx,
    fixture: &Value,
    at: DateTime<Utc>,
    hash_password: &(dyn Fn(&str) -> Result<String, E> + Sync),
) -> Result<Loaded> {
    Fixture::parse(fixture, at, hash_password)?.load(tx).await
}

impl Fixture {
    /// Checks a fixture and hashes its passwords, which takes a while.
    ///
    /// # Errors
    /// [`Error::Fixture`] with table, row and column.
    pub fn parse<E: std::fmt::Display>(
        fixture: &Value,
        at: DateTime<Utc>,
        hash_password: &dyn Fn(&str) -> Result<String, E>,
    ) -> Result<Self> {
        let tables = fixture
            .as_object()
            .ok_or_else(|| unusable("it is not a JSON object"))?;
        let mut parsed = Vec::new();
        for (name, rows) in tables {
            let table = catalog::table(name).ok_or_else(|| unusable(format!("there is no table {name}")))?;
            let rows = rows
                .as_array()
                .ok_or_else(|| unusable(format!("{name} is not an array")))?;
            for (index, row) in rows.iter().enumerate() {
                let row = row
                    .as_object()
                    .ok_or_else(|| unusable(format!("{name}[{index}] is not an object")))?;
                let values = parse_row(table, row, at, hash_password)
                    .map_err(|reason| unusable(format!("{name}[{index}]: {reason}")))?;
                parsed.push(FixtureRow { table, values });
            }
        }
        Ok(Self(parsed))
    }

    /// Inserts the rows that are not there yet, in the order of the file.
    ///
    /// # Errors
    /// [`Error::Conflict`] for rows that refer to missing ones or differ from the stored ones in the key only,
    /// [`Error::TooLong`].
    pub async fn load(self, tx: &mut Tx) -> Result<Loaded> {
        tx.lock_fixtures().await?;
        let mut loaded = Loaded::default();
        for row in self.0 {
            let is_new = match row.table.key {
                [] if is_stored(tx, &row).await? => false,
                [] => tx.insert(row.table.name, row.values, "").await?,
                key => {
                    let rest = format!("ON CONFLICT ({}) DO NOTHING", key.join(", "));
                    tx.insert(row.table.name, row.values, &rest).await?
                }
            };
            *(if is_new {
                &mut loaded.inserted
            } else {
                &mut loaded.skipped
            }) += 1;
        }
        Ok(loaded)
    }
}

fn unusable(reason: impl Into<String>) -> Error {
    Error::Fixture(reason.into())
}

/// Whether a table without a key has this very row.
async fn is_stored(tx: &Tx, row: &FixtureRow) -> Result<bool> {
    let conditions: Vec<String> = row
        .values
        .iter()
        .enumerate()
        .map(|(index, (column, _))| format!("\"{column}\" = ${}", index + 1))
        .collect();
    let sql = format!(
        "SELECT count(*) AS n FROM \"{}\" WHERE {}",
        row.table.name,
        conditions.join(" AND ")
    );
    let params = row.values.iter().map(|(_, param)| param.clone()).collect();
    Ok(tx.count(sql, params).await? > 0)
}

type Parsed<T> = Result<T, String>;

fn parse_row<E: std::fmt::Display>(
    table: &'static Table,
    row: &Map<String, Value>,
    at: DateTime<Utc>,
    hash_password: &dyn Fn(&str) -> Result<String, E>,
) -> Parsed<Vec<(&'static str, Param)>> {
    if let Some(unknown) = row
        .keys()
        .find(|name| !table.columns.iter().any(|(column, _)| column == name))
    {
        return Err(format!("there is no column {unknown}"));
    }
    if let Some(missing) = table
        .key
        .iter()
        .find(|column| row.get(**column).is_none_or(Value::is_null))
    {
        return Err(format!("the key column {missing} has no value"));
    }
    table
        .columns
        .iter()
        .map(|(column, kind)| {
            let default = || default_of(table.name, column, at);
            let value = row.get(*column).cloned().unwrap_or_else(default);
            let param = match (*column, value) {
                ("password", Value::String(password)) => hash_password(&password)
                    .map(|hash| Param::Text(Some(hash)))
                    .map_err(|error| error.to_string()),
                (_, value) => parse_value(*kind, value),
            };
            Ok((*column, param.map_err(|reason| format!("{column}: {reason}"))?))
        })
        .collect()
}

/// What an absent column means (`data-model.md` 4).
fn default_of(table: &str, column: &str, at: DateTime<Utc>) -> Value {
    match (table, column) {
        ("agents", "status") => json!("ALIVE"),
        ("agents", "compute_plugins" | "occupied_slots") | ("kernels", "occupied_shares") => json!({}),
        ("domains" | "groups" | "users", "is_active") => json!(true),
        ("domains" | "groups", "total_resource_slots") => json!({}),
        (_, "allowed_vfolder_hosts") => json!([]),
        ("users", "role") => json!("user"),
        ("keypairs", "is_admin") => json!(false),
        ("keypairs", "num_queries" | "concurrency_used") => json!(0),
        ("kernels", "role") => json!("master"),
        ("kernels", "status") => json!("PREPARING"),
        ("kernels", "num_queries") => json!(0),
        ("keypair_resource_policies", "default_for_unspecified") => json!("LIMITED"),
        ("vfolders", "max_files") => json!(1000),
        ("vfolders", "max_size") => json!(1_048_576),
        ("vfolders", "num_files" | "cur_size") => json!(0),
        ("vfolder_invitations" | "vfolder_permissions", "permission") => json!("rw"),
        ("vfolder_invitations", "state") => json!("pending"),
        (_, "created_at" | "modified_at" | "first_contact") => json!(at.to_rfc3339()),
        _ => Value::Null,
    }
}

fn parse_value(kind: Kind, value: Value) -> Parsed<Param> {
    let text = |value: Value| match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(format!("{other} is not a text")),
    };
    let parsed = match kind {
        Kind::Text(_) => Param::Text(text(value)?),
        Kind::Enum(name) => {
            let value = text(value)?;
            if let Some(value) = &value
                && !name.has(value)
            {
                return Err(format!("{value} is not one of the values of this column"));
            }
            Param::Enum(name, value)
        }
        Kind::Uuid => {
            let id = text(value)?.map(|text| text.parse::<Uuid>()).transpose();
            Param::Uuid(id.map_err(|error| error.to_string())?)
        }
        Kind::Time => Param::Time(text(value)?.as_deref().map(parse_time).transpose()?),
        Kind::Integer if value.is_null() => Param::Integer(None),
        Kind::Integer => Param::Integer(Some(
            value
                .as_i64()
                .ok_or_else(|| format!("{value} is not an integer"))?,
        )),
        Kind::Boolean if value.is_null() => Param::Boolean(None),
        Kind::Boolean => Param::Boolean(Some(
            value
                .as_bool()
                .ok_or_else(|| format!("{value} is not a boolean"))?,
        )),
        Kind::Json | Kind::Slots if value.is_null() => Param::Json(None),
        Kind::Json => Param::Json(Some(value)),
        Kind::Slots => {
            let (slots, garbage) = bai_model::ResourceSlot::from_stored(&value);
            if !garbage.is_empty() {
                return Err(format!("unusable amounts of {}", garbage.join(", ")));
            }
            Param::Json(Some(slots.to_json()))
        }
        Kind::Texts => Param::Texts(serde_json::from_value(value).map_err(|error| error.to_string())?),
    };
    Ok(parsed)
}

/// ISO 8601 with `T` or a blank, with or without an offset; without means UTC.
fn parse_time(text: &str) -> Parsed<DateTime<Utc>> {
    let iso = text.replacen(' ', "T", 1);
    if let Ok(at) = DateTime::parse_from_rfc3339(&iso) {
        return Ok(at.to_utc());
    }
    let naive = NaiveDateTime::parse_from_str(&iso, "%Y-%m-%dT%H:%M:%S%.f");
    naive
        .map(|at| at.and_utc())
        .map_err(|_| format!("{text} is not an ISO 8601 time"))
}
