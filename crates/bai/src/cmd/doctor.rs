//! `bai doctor`: looks for what is wrong with a site's database, configuration store and broker, and repairs what can be.
//!
//! Exit codes: 0 when nothing is wrong (notes aside), 1 when something is, 2 when a service could not be looked at.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bai_core::doctor::{
    Change, Finding, SchemaFacts, Severity, examine_broker, examine_config, examine_database, repair,
};
use bai_model::time::Clock;
use bai_store::agent::AgentRow;
use bai_store::{Store, StoreOptions};
use serde::Serialize;

use crate::config::Address;
use crate::output::{line, say};
use crate::site::{Chosen, Site, SiteArgs};
use crate::system::SystemClock;

const EXAMPLES: &str = "\
Examples:
  bai doctor --config manager.toml            looks, and says what --repair would do
  bai doctor --config manager.toml --repair --dry-run
  bai doctor --database postgres://… --etcd etcd://127.0.0.1:2379 --namespace local

It may run beside managers, ours or the original. Exit code: 0 nothing is wrong, 1 something is, 2 something could not be
looked at.";
/// Findings of one kind that a person is shown.
const SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    site: SiteArgs,
    /// The database of a site without a manager.toml
    #[arg(long, value_name = "URI", requires = "etcd", conflicts_with_all = ["config", "data_dir"])]
    database: Option<String>,
    /// The configuration store of such a site
    #[arg(long, value_name = "URI", requires = "database")]
    etcd: Option<String>,
    /// Its namespace
    #[arg(long, value_name = "NAME", requires = "database", default_value = "local")]
    namespace: String,
    /// Its broker [default: as the configuration store says]
    #[arg(long, value_name = "URI", requires = "database")]
    redis: Option<String>,
    /// Write amounts as they are read and counters as the sessions say, in one transaction
    #[arg(long)]
    repair: bool,
    /// With --repair: do it, report it, and take it back
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

/// What was seen of a site.
#[derive(Debug, Default, Serialize)]
struct Report {
    schema: Option<SchemaFacts>,
    findings: Vec<Finding>,
    /// Services that could not be looked at, and why.
    unchecked: Vec<String>,
    /// What was changed; nothing when nothing was asked for.
    changes: Option<Vec<Change>>,
    is_dry_run: bool,
}

/// Looks, repairs if asked to, and says what it saw.
///
/// # Errors
/// When the output is gone.
pub async fn run(args: Args) -> Result<ExitCode> {
    let chosen = args.choose().and_then(|chosen| {
        // Files belong to one process at a time.
        let lock = chosen.site.lock()?;
        Ok((chosen.site, lock))
    });
    let (site, _lock) = match chosen {
        Ok(chosen) => chosen,
        Err(error) => {
            say(&format!("bai: {error:#}"));
            return Ok(ExitCode::from(2));
        }
    };
    let mut report = Report::default();
    if args.repair {
        match repaired(&site, args.dry_run).await {
            Ok(changes) => report.changes = Some(changes),
            Err(error) => report.unchecked.push(format!("nothing was repaired: {error:#}")),
        }
        report.is_dry_run = args.dry_run;
    }
    report.look(&site).await;
    if args.json {
        line(&serde_json::to_string(&report)?)?;
    } else {
        report.print(&site)?;
    }
    Ok(report.exit_code())
}

impl Args {
    fn choose(&self) -> Result<Chosen> {
        let (Some(database), Some(etcd)) = (&self.database, &self.etcd) else {
            return self.site.choose();
        };
        let address = |text: &String| Address::new(text.clone());
        let redis = self.redis.as_ref().map(address);
        Ok(Chosen {
            site: Site::at(address(database), address(etcd), &self.namespace, redis),
            loaded: None,
        })
    }
}

/// The database, without a change of its schema.
async fn open(site: &Site, read_only: bool) -> Result<Store> {
    let options = StoreOptions {
        read_only,
        ..site.database_options()
    };
    let store = Store::open_unchanged(site.database().expose(), &options).await;
    store.with_context(|| format!("cannot use the database {}", site.database()))
}

async fn repaired(site: &Site, dry_run: bool) -> Result<Vec<Change>> {
    let store = open(site, false).await?;
    let changes = repair(&store, dry_run).await;
    store.close().await;
    Ok(changes?)
}

impl Report {
    /// Looks at each service; one that cannot be looked at does not keep the others from it.
    async fn look(&mut self, site: &Site) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let alive = self.database(site).await;
        let alive = alive.unwrap_or_else(|error| self.missed(&error));
        let looked = self.services(site, &alive, &clock).await;
        looked.unwrap_or_else(|error| self.missed(&error));
    }

    fn missed<T: Default>(&mut self, error: &anyhow::Error) -> T {
        self.unchecked.push(format!("{error:#}"));
        T::default()
    }

    /// The agents that are alive, as far as the database could be looked at.
    async fn database(&mut self, site: &Site) -> Result<Vec<AgentRow>> {
        let store = open(site, true).await?;
        let reader = store.reader();
        let looked = examine_database(&reader).await;
        let (facts, findings) =
            looked.with_context(|| format!("cannot look at the database {}", site.database()))?;
        self.schema = Some(facts);
        let is_ours = !findings
            .iter()
            .any(|finding| finding.check == "schema" && finding.severity == Severity::Error);
        self.findings.extend(findings);
        let alive = if is_ours {
            reader.alive_agents().await?
        } else {
            Vec::new()
        };
        store.close().await;
        Ok(alive)
    }

    async fn services(&mut self, site: &Site, alive: &[AgentRow], clock: &Arc<dyn Clock>) -> Result<()> {
        let config = site.open_config(Duration::ZERO, clock).await?;
        self.findings.extend(examine_config(&config).await?);
        let broker = site.open_broker(&config, Duration::ZERO, clock).await?;
        let looked = examine_broker(broker.as_ref(), alive, clock.now()).await;
        self.findings
            .extend(looked.map_err(|error| anyhow!("cannot look at the broker: {error}"))?);
        Ok(())
    }

    fn exit_code(&self) -> ExitCode {
        let is_wrong = |finding: &Finding| finding.severity > Severity::Note;
        ExitCode::from(match (&self.unchecked[..], self.findings.iter().any(is_wrong)) {
            ([_, ..], _) => 2,
            ([], true) => 1,
            ([], false) => 0,
        })
    }

    fn print(&self, site: &Site) -> Result<()> {
        if let Some(facts) = &self.schema {
            let lineage = facts
                .lineage
                .map(|lineage| format!(", made by {lineage}"))
                .unwrap_or_default();
            line(&format!(
                "{}: revision {}{lineage}, {} of {} additions",
                site.database(),
                facts.revisions.join(", "),
                facts.additions.0,
                facts.additions.1
            ))?;
        }
        if let Some(changes) = &self.changes {
            let did = if self.is_dry_run {
                "would change"
            } else {
                "changed"
            };
            for change in changes {
                line(&format!(
                    "{did} {}: {} to {}",
                    change.subject, change.from, change.to
                ))?;
            }
            line(&format!("the repair {did} {}", count(changes.len(), "value")))?;
        }
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        // The worst first, and each kind together.
        findings.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.check));
        for kind in findings.chunk_by(|a, b| (a.severity, a.check) == (b.severity, b.check)) {
            for finding in kind.iter().take(SHOWN) {
                print(finding)?;
            }
            if kind.len() > SHOWN {
                line(&format!(
                    "  … and {} more of this kind; --json shows all",
                    kind.len() - SHOWN
                ))?;
            }
        }
        for missed in &self.unchecked {
            say(&format!("bai: {missed}"));
        }
        self.summarise()
    }

    fn summarise(&self) -> Result<()> {
        let of = |severity| {
            self.findings
                .iter()
                .filter(|finding| finding.severity == severity)
                .count()
        };
        let mut text = format!(
            "{}, {}, {}",
            count(of(Severity::Error), "error"),
            count(of(Severity::Warning), "warning"),
            count(of(Severity::Note), "note")
        );
        let repairable = self.findings.iter().filter(|finding| finding.is_repaired).count();
        if repairable > 0 {
            text.push_str(&format!("; --repair takes care of {repairable}"));
        }
        Ok(line(&text)?)
    }
}

fn print(finding: &Finding) -> Result<()> {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    line(&format!(
        "{severity} ({}): {}: {}",
        finding.check, finding.subject, finding.meaning
    ))?;
    let by = if finding.is_repaired { "--repair " } else { "" };
    Ok(line(&format!("    {by}{}", finding.remedy))?)
}

fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
