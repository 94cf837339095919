//! `bai fixture …`: rows from a file (`http-api.md` 5.8).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bai_core::Manager;
use bai_model::time::Clock as _;
use bai_store::fixture::Fixture;
use serde_json::Value;

use crate::output::{line, say};
use crate::site::SiteArgs;
use crate::system::SystemClock;

/// Bytes of a fixture.
const MAX_FILE: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    site: SiteArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Insert the rows of a file that are not there yet: all of them or, when one cannot be, none
    #[command(after_help = "\
The file is JSON: {\"table\": [{\"column\": value, ...}, ...], ...}. Passwords are in clear and hashed here.
Example:
  bai fixture populate example-keypairs.json")]
    Populate {
        file: PathBuf,
        /// Say what would be inserted, and insert nothing
        #[arg(long)]
        dry_run: bool,
        /// A JSON object instead of a line
        #[arg(long)]
        json: bool,
    },
    /// Has been out of use for long: name a file
    #[command(hide = true)]
    List,
}

/// # Errors
/// With a sentence that says what to do.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Populate { file, dry_run, json } => {
            let text = read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let rows: Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            let chosen = args.site.choose()?;
            let now = SystemClock.now();
            // Before the database is opened: hashing takes a quarter of a second each.
            let parse = move || Fixture::parse(&rows, now, &Manager::hash_password);
            let fixture = tokio::task::spawn_blocking(parse).await?;
            let fixture = fixture.with_context(|| format!("{} cannot be loaded", file.display()))?;
            let store = chosen.open_store().await?;
            let mut tx = store.begin().await?;
            let loaded = fixture
                .load(&mut tx)
                .await
                .with_context(|| format!("nothing of {} was loaded", file.display()))?;
            if !dry_run {
                tx.commit().await?;
            }
            if json {
                let view = serde_json::json!({
                    "inserted": loaded.inserted, "skipped": loaded.skipped, "dry_run": dry_run,
                });
                line(&view.to_string())?;
            } else {
                let would_be = if dry_run { "would be " } else { "" };
                line(&format!(
                    "{would_be}inserted: {}, there already: {}",
                    loaded.inserted, loaded.skipped
                ))?;
            }
        }
        Command::List => {
            say("bai: there is no list of fixtures: name a file with `bai fixture populate FILE`")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        bail!("it is larger than 64 MiB");
    }
    Ok(text)
}
