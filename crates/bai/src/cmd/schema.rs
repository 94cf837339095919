//! `bai schema …`: the database's schema (`http-api.md` 5.7).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bai_store::schema::{ALEMBIC_HEAD, Lineage, SchemaReport};
use bai_store::{Store, StoreOptions};
use serde_json::json;

use crate::output::{line, say};
use crate::site::{Chosen, SiteArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    site: SiteArgs,
    /// Has no effect: the database is that of the site
    #[arg(long, value_name = "PATH", global = true, hide = true)]
    alembic_config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the revision of the database and the one that this program works with; changes nothing
    Show {
        /// A JSON object, with all that is known
        #[arg(long)]
        json: bool,
    },
    /// Make all tables in an empty database, or bring the schema of a filled one up to date
    Oneshot,
    /// Bring the schema of a filled database up to date
    Upgrade {
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// # Errors
/// With a sentence that says what to do.
pub async fn run(args: Args) -> Result<ExitCode> {
    if args.alembic_config.is_some() {
        say("bai: --alembic-config has no effect: the database is that of manager.toml");
    }
    let chosen = args.site.choose()?;
    match args.command {
        Command::Show { json } => show(&report(&chosen).await?, json),
        Command::Oneshot => {
            chosen.open_store().await?;
            say(&format!(
                "bai: the database is at {ALEMBIC_HEAD} with all additions"
            ));
            Ok(ExitCode::SUCCESS)
        }
        Command::Upgrade { dry_run } => {
            let report = report(&chosen).await?;
            if report.is_empty {
                bail!("the database is empty: `bai schema oneshot` makes its tables");
            }
            if dry_run {
                return pending(&report);
            }
            chosen.open_store().await?;
            say(&format!(
                "bai: the database is at {ALEMBIC_HEAD} with all additions"
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn report(chosen: &Chosen) -> Result<SchemaReport> {
    let options = StoreOptions {
        read_only: true,
        ..chosen.site.database_options()
    };
    let store = Store::open_unchanged(chosen.site.database().expose(), &options).await;
    let store = store.with_context(|| format!("cannot use the database {}", chosen.site.database()))?;
    Ok(store.reader().schema_report().await?)
}

fn show(report: &SchemaReport, as_json: bool) -> Result<ExitCode> {
    let revision = match report.revisions.as_slice() {
        [] => "None".to_owned(),
        revisions => revisions.join(", "),
    };
    if as_json {
        let lineage = report.lineage.map(|lineage| match lineage {
            Lineage::OneShot => "oneshot",
            Lineage::Migrated => "migrated",
        });
        let view = json!({
            "revisions": report.revisions, "head": ALEMBIC_HEAD, "is_empty": report.is_empty, "lineage": lineage,
            "enum_types": report.enum_types.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "missing_columns": report.missing_columns, "missing_indexes": report.missing_indexes,
            "additions": { "current": report.version, "head": report.latest_version },
        });
        line(&view.to_string())?;
    } else {
        line(&format!("Current database revision: {revision}"))?;
        line(&format!(
            "The head revision of available migrations: {ALEMBIC_HEAD}"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What an upgrade would do.
fn pending(report: &SchemaReport) -> Result<ExitCode> {
    if !report.is_head() {
        bail!(
            "the database is at {:?} and not at {ALEMBIC_HEAD} (Backend.AI manager 19.06): upgrade it with the original \
             manager first",
            report.revisions
        );
    }
    for number in report.version..report.latest_version {
        line(&format!("addition {}", number + 1))?;
    }
    for index in &report.missing_indexes {
        line(&format!("index {index}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
