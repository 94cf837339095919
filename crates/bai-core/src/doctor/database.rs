//! The database: its schema, what its user may do, and its rows (`data-model.md` 1, 7, 20).

use bai_store::accounting::Discrepancy;
use bai_store::doctor::{DirtySlots, OrphanKernel, Rights};
use bai_store::schema::{ALEMBIC_HEAD, Lineage, SchemaReport};
use bai_store::{Error, Reader, Result, Store};
use serde::Serialize;

use super::Finding;
use super::Severity::{Error as Wrong, Note, Warning};

/// What kind of database it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SchemaFacts {
    pub revisions: Vec<String>,
    /// `oneshot` or `migrated`, on PostgreSQL.
    pub lineage: Option<&'static str>,
    /// Columns with the names of their enum types, on PostgreSQL.
    pub enum_types: Vec<(String, String)>,
    /// How many of our additions it has had, and how many there are.
    pub additions: (usize, usize),
}

/// What [`repair`] changed, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Table, column and key.
    pub subject: String,
    pub from: String,
    pub to: String,
}

/// Looks at everything in a database. Rows are looked at only where the schema is ours to read.
///
/// # Errors
/// When the database cannot be asked.
pub async fn examine_database(reader: &Reader) -> Result<(SchemaFacts, Vec<Finding>)> {
    let report = reader.schema_report().await?;
    let mut findings = schema(&report);
    if report.is_head() {
        findings.extend(rights(&report, &reader.rights().await?));
        findings.extend(reader.dirty_slots().await?.iter().map(amounts));
        findings.extend(reader.check_accounting().await?.iter().map(accounting));
        findings.extend(reader.orphan_kernels().await?.iter().map(orphan));
    }
    let lineage = report.lineage.map(|lineage| match lineage {
        Lineage::OneShot => "oneshot",
        Lineage::Migrated => "migrated",
    });
    let facts = SchemaFacts {
        revisions: report.revisions,
        lineage,
        enum_types: report.enum_types,
        additions: (report.version, report.latest_version),
    };
    Ok((facts, findings))
}

/// Writes every amount as it is read and every counter as its rows say, all or nothing; with `dry_run`, nothing. Answers
/// what was, or would be, changed.
///
/// # Errors
/// [`Error::Schema`] when the schema is not one that may be written, and when the database fails.
pub async fn repair(store: &Store, dry_run: bool) -> Result<Vec<Change>> {
    if !store.reader().schema_report().await?.is_head() {
        return Err(Error::Schema(format!(
            "nothing is repaired in a database that is not at {ALEMBIC_HEAD} (Backend.AI manager 19.06)"
        )));
    }
    let mut tx = store.begin().await?;
    // The counters first: this takes the locks that those who create and terminate wait for.
    let counters = tx.recalculate_usage().await?;
    let cleaned = tx.clean_slots().await?;
    if dry_run {
        drop(tx);
    } else {
        tx.commit().await?;
    }
    let cleaned = cleaned.iter().filter(|dirty| dirty.garbage.is_empty());
    let cleaned = cleaned.map(|dirty| Change {
        subject: place(dirty),
        from: stored(dirty),
        to: dirty.read_as.to_json().to_string(),
    });
    let counted = counters.iter().map(|counter| {
        let (subject, from, to) = numbers(counter);
        Change { subject, from, to }
    });
    Ok(counted.chain(cleaned).collect())
}

fn schema(report: &SchemaReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |severity, subject: &str, meaning: String, remedy: &str| {
        findings.push(Finding::new(severity, "schema", subject, meaning, remedy));
    };
    if report.is_empty {
        let remedy = "`bai schema oneshot` makes them; or is this the wrong database?";
        find(Wrong, "database", "there are no tables".to_owned(), remedy);
        return findings;
    }
    if report.revisions != [ALEMBIC_HEAD] {
        let meaning = format!(
            "the revision is {:?}; only {ALEMBIC_HEAD}, of Backend.AI manager 19.06, can be served",
            report.revisions
        );
        let remedy = "upgrade an older database with the original manager; a newer one cannot be used";
        find(Wrong, "alembic_version", meaning, remedy);
        return findings;
    }
    for column in &report.missing_columns {
        let meaning = "this column of 19.06 is not there".to_owned();
        find(
            Wrong,
            column,
            meaning,
            "restore the schema with the original manager",
        );
    }
    if report.version > report.latest_version {
        let meaning = format!(
            "a newer bai has made {} additions, and this one knows {}",
            report.version, report.latest_version
        );
        find(Wrong, "bai_schema_version", meaning, "use that newer version");
    } else if report.version < report.latest_version {
        let meaning = format!(
            "{} additions of ours are not there yet; the original ignores them",
            report.latest_version - report.version
        );
        let remedy = "the next start of a server, or `bai schema upgrade`, makes them";
        find(Note, "bai_schema_version", meaning, remedy);
    }
    if !report.missing_indexes.is_empty() {
        let meaning = format!(
            "indexes that make us fast are not there: {}",
            report.missing_indexes.join(", ")
        );
        let remedy = "the next start of a server makes them beside running work";
        find(Note, "indexes", meaning, remedy);
    }
    for (column, name) in &report.enum_types {
        if !is_known_enum(column, name) {
            let meaning = format!("the enum type is called {name}, which neither lineage of 19.06 does");
            let remedy = "ours works with any name; the original may not: compare with its schema";
            find(Warning, column, meaning, remedy);
        }
    }
    findings
}

/// `data-model.md` 2.
fn is_known_enum(column: &str, name: &str) -> bool {
    match column {
        "agents.status" => name == "agentstatus",
        "kernels.status" => name == "kernelstatus",
        "users.role" => name == "userrole",
        "keypair_resource_policies.default_for_unspecified" => {
            matches!(name, "defaultforunspecified" | "default_for_unspecified")
        }
        _ => name == "vfolderpermission",
    }
}

fn rights(report: &SchemaReport, rights: &Rights) -> Vec<Finding> {
    const CHECK: &str = "rights";
    let mut findings = Vec::new();
    if !rights.may_create {
        let lacks = report.version < report.latest_version;
        let meaning = "the database's user may not make tables in the schema, which additions need";
        let remedy = "GRANT CREATE ON SCHEMA public to it, or let the owner run `bai schema upgrade`";
        let severity = if lacks { Wrong } else { Warning };
        findings.push(Finding::new(severity, CHECK, "schema", meaning, remedy));
    }
    if !rights.not_owned.is_empty() {
        let meaning = format!(
            "the database's user does not own {}, so it cannot make indexes for them",
            rights.not_owned.join(", ")
        );
        let remedy = "let the owner run `bai schema upgrade`; without the indexes everything works, slower";
        let severity = if report.missing_indexes.is_empty() {
            Note
        } else {
            Warning
        };
        findings.push(Finding::new(severity, CHECK, "tables", meaning, remedy));
    }
    for table in &rights.not_writable {
        let meaning = "the database's user may not read and change all of its rows";
        let remedy = "GRANT SELECT, INSERT, UPDATE, DELETE on it";
        findings.push(Finding::new(Wrong, CHECK, table, meaning, remedy));
    }
    findings
}

fn amounts(dirty: &DirtySlots) -> Finding {
    let (place, is) = (place(dirty), stored(dirty));
    if dirty.garbage.is_empty() {
        let meaning = format!(
            "{is} is not as it is written now, and is read as {}",
            dirty.read_as.to_json()
        );
        return Finding::new(Warning, "amounts", place, meaning, "writes what is read").repaired();
    }
    let meaning = format!(
        "{is} makes no sense in {}, which is read as if it were not there",
        dirty.garbage.join(", ")
    );
    let remedy = "correct it: only you know what was meant";
    Finding::new(Wrong, "amounts", place, meaning, remedy)
}

fn place(dirty: &DirtySlots) -> String {
    format!("{}.{} of {}", dirty.table, dirty.column, dirty.key)
}

fn stored(dirty: &DirtySlots) -> String {
    dirty
        .stored
        .as_ref()
        .map_or_else(|| "NULL".to_owned(), ToString::to_string)
}

fn accounting(discrepancy: &Discrepancy) -> Finding {
    let (place, stored, derived) = numbers(discrepancy);
    let meaning = format!(
        "{stored} is stored, and its live sessions make {derived}; the original refuses or admits by it"
    );
    let remedy = format!("sets it to {derived}");
    Finding::new(Warning, "accounting", place, meaning, remedy).repaired()
}

fn numbers(discrepancy: &Discrepancy) -> (String, String, String) {
    match discrepancy {
        Discrepancy::Keypair {
            access_key,
            stored,
            derived,
        } => (
            format!("keypairs.concurrency_used of {access_key}"),
            stored.to_string(),
            derived.to_string(),
        ),
        Discrepancy::Agent {
            agent,
            stored,
            derived,
        } => (
            format!("agents.occupied_slots of {agent}"),
            stored.to_json().to_string(),
            derived.to_json().to_string(),
        ),
    }
}

fn orphan(orphan: &OrphanKernel) -> Finding {
    let name = orphan.sess_id.as_deref().unwrap_or("without a name");
    let place = format!("kernels {} ({name})", orphan.id);
    let Some(status) = orphan.status else {
        let meaning = "the row has no status, so that nobody counts, shows or ends it";
        let remedy = "set its status, to TERMINATED unless you know that it runs";
        return Finding::new(Wrong, "orphans", place, meaning, remedy);
    };
    let agent = match (&orphan.agent, orphan.agent_status) {
        (Some(agent), Some(state)) => format!("its agent {agent} is {}", state.as_str()),
        (Some(agent), None) => format!("its agent {agent} is unknown"),
        (None, _) => "it has no agent".to_owned(),
    };
    let meaning = format!(
        "the session is {} and {agent}; it keeps its name and its amounts",
        status.as_str()
    );
    let remedy =
        "bring the agent back, and it goes on or ends; or terminate it by force if the host is gone for good";
    Finding::new(Warning, "orphans", place, meaning, remedy)
}
