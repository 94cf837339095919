//! What schema a database has, read without changing it: for `schema show` and for the doctor.

use std::collections::BTreeSet;

use super::{ALEMBIC_HEAD, indexes, migrations, tables_of};
use crate::catalog::{self, Kind};
use crate::driver::{Dialect, params};
use crate::{Reader, Result};

/// How a database on PostgreSQL was born (`data-model.md` 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// By `schema oneshot`, or by us.
    OneShot,
    /// By upgrading an older installation.
    Migrated,
}

/// The schema of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaReport {
    /// Whether there are no tables at all.
    pub is_empty: bool,
    /// What `alembic_version` holds: one revision, unless something is wrong.
    pub revisions: Vec<String>,
    /// Unknown on SQLite and for what is not a 19.06 schema.
    pub lineage: Option<Lineage>,
    /// `table.column` and the name of its enum type, on PostgreSQL.
    pub enum_types: Vec<(String, String)>,
    /// Columns of 19.06 that are not there, as `table.column`.
    pub missing_columns: Vec<String>,
    /// How many of our migrations it has had; 1 is 19.06 alone.
    pub version: usize,
    /// How many there are.
    pub latest_version: usize,
    /// Indexes of ours that opening will make.
    pub missing_indexes: Vec<String>,
}

impl SchemaReport {
    /// Whether the operations of this crate can be used on it: 19.06 at its head, with all columns.
    pub fn is_head(&self) -> bool {
        self.revisions == [ALEMBIC_HEAD] && self.missing_columns.is_empty()
    }
}

impl Reader {
    /// Reads what schema the database has.
    pub async fn schema_report(&self) -> Result<SchemaReport> {
        let dialect = self.dialect().await;
        let tables = self
            .list(tables_of(dialect), params![], |row| row.get::<String>("name"))
            .await?;
        let has = |name: &str| tables.iter().any(|table| table == name);
        let mut report = SchemaReport {
            is_empty: tables.is_empty(),
            latest_version: migrations(dialect).len(),
            ..SchemaReport::default()
        };
        if !has("alembic_version") {
            return Ok(report);
        }
        let revisions = "SELECT version_num FROM alembic_version ORDER BY version_num";
        report.revisions = self
            .list(revisions, params![], |row| row.get("version_num"))
            .await?;
        report.version = if has("bai_schema_version") {
            let version = "SELECT coalesce(max(version), 1) AS n FROM bai_schema_version";
            usize::try_from(self.count(version, params![]).await?).unwrap_or(usize::MAX)
        } else {
            1
        };
        report.missing_columns = self.missing_columns(dialect).await?;
        if dialect == Dialect::Postgres {
            report.enum_types = self.enum_types().await?;
            report.lineage = report
                .enum_types
                .iter()
                .find(|(column, _)| column == "keypair_resource_policies.default_for_unspecified")
                .map(|(_, name)| match name.as_str() {
                    "defaultforunspecified" => Lineage::OneShot,
                    _ => Lineage::Migrated,
                });
            report.missing_indexes = self.missing_indexes().await?;
        }
        Ok(report)
    }

    async fn missing_columns(&self, dialect: Dialect) -> Result<Vec<String>> {
        let sql = match dialect {
            Dialect::Postgres => {
                "SELECT table_name || '.' || column_name AS name FROM information_schema.columns \
                 WHERE table_schema = current_schema()"
            }
            Dialect::Sqlite => {
                "SELECT t.name || '.' || c.name AS name FROM sqlite_master t JOIN pragma_table_info(t.name) c \
                 WHERE t.type = 'table'"
            }
        };
        let found = self.list(sql, params![], |row| row.get::<String>("name")).await?;
        let found: BTreeSet<String> = found.into_iter().collect();
        let expected = catalog::TABLES.iter().flat_map(|table| {
            table
                .columns
                .iter()
                .map(|(column, _)| format!("{}.{column}", table.name))
        });
        Ok(expected.filter(|column| !found.contains(column)).collect())
    }

    async fn enum_types(&self) -> Result<Vec<(String, String)>> {
        let sql = "SELECT table_name || '.' || column_name AS name, udt_name FROM information_schema.columns \
                   WHERE table_schema = current_schema() AND data_type = 'USER-DEFINED' ORDER BY 1";
        let found = self
            .list(sql, params![], |row| {
                Ok((row.get::<String>("name")?, row.get("udt_name")?))
            })
            .await?;
        let is_enum = |name: &str| {
            name.split_once('.')
                .and_then(|(table, column)| {
                    let columns = catalog::table(table)?.columns;
                    columns.iter().find(|(of, _)| *of == column)
                })
                .is_some_and(|(_, kind)| matches!(kind, Kind::Enum(_)))
        };
        Ok(found.into_iter().filter(|(name, _)| is_enum(name)).collect())
    }

    async fn missing_indexes(&self) -> Result<Vec<String>> {
        let sql = "SELECT c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                   WHERE i.indisvalid AND c.relnamespace = current_schema()::regnamespace";
        let found = self.list(sql, params![], |row| row.get::<String>("name")).await?;
        Ok(indexes::INDEXES
            .iter()
            .filter(|(name, _)| !found.iter().any(|found| found == name))
            .map(|(name, _)| (*name).to_owned())
            .collect())
    }
}
