//! The commands on images and their names (`http-api.md` 5.7): rescan, list, inspect, aliases, limits.
//!
//! They take an opened [`Catalogue`], so that they know nothing of where it is.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use bai_core::image::{
    Alias, Catalogue, ImageChange, ImageOutcome, ImageRecord, Rescan, RescanEvent, RescanSummary,
};
use bai_core::{Actor, Op};
use bai_model::time::Clock as _;
use bai_registry::Trust;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::output::{line, say};
use crate::system::SystemClock;

/// Bytes of an aliases file or a certificate.
const MAX_FILE: u64 = 4 * 1024 * 1024;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring the image catalogue up to date with the registries
    #[command(after_help = "\
Examples:
  bai etcd rescan-images                          all configured registries
  bai etcd rescan-images cr.example.com --dry-run")]
    RescanImages {
        /// Name of a registry below config/docker/registry [default: all]
        registry: Option<String>,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Believe the authorities in this PEM file too
        #[arg(long, value_name = "FILE")]
        registry_ca: Option<PathBuf>,
        /// Believe any certificate
        #[arg(long, conflicts_with = "registry_ca")]
        no_ssl_verify: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the images of the catalogue
    #[command(visible_alias = "ls-images")]
    ListImages {
        #[command(flatten)]
        output: Output,
    },
    /// Show all that the catalogue has of an image
    InspectImage {
        /// Reference or alias
        reference: String,
        #[command(flatten)]
        output: Output,
    },
    /// Set the least and the most of a slot that sessions of an image may have. A rescan sets the least again where the
    /// image has a label for it
    #[command(after_help = "\
Examples:
  bai etcd set-image-resource-limit python:3.6 cpu 1:4
  bai etcd set-image-resource-limit python:3.6 mem :2g        the most; the least stays")]
    SetImageResourceLimit {
        /// Reference or alias
        reference: String,
        /// For example cpu or mem
        slot: String,
        /// MIN:MAX; an empty side stays as it is
        #[arg(value_parser = parse_range, value_name = "MIN:MAX")]
        range: Range,
    },
    /// Give an image another name
    Alias {
        alias: String,
        /// A reference or another alias
        target: String,
    },
    /// Take a name away
    Dealias { alias: String },
    /// Set aliases from a file
    #[command(after_help = "\
The file is YAML or JSON:
  aliases:
    - ['python:3.6', 'python:3.6-ubuntu']
    - ['python', 'python:3.6']")]
    UpdateAliases {
        /// `-` is stdin
        file: PathBuf,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Both sides of a limit, as given.
#[derive(Clone, Debug)]
pub struct Range {
    min: Option<String>,
    max: Option<String>,
}

fn parse_range(text: &str) -> std::result::Result<Range, String> {
    let (min, max) = text
        .split_once(':')
        .ok_or("must be MIN:MAX, for example 1:4, :4 or 2:")?;
    let side = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let range = Range {
        min: side(min),
        max: side(max),
    };
    if range.min.is_none() && range.max.is_none() {
        return Err("needs a number on one side at least".to_owned());
    }
    Ok(range)
}

/// Does one of the commands on an opened catalogue.
///
/// # Errors
/// With a sentence that says what to do.
pub async fn run(command: Command, catalogue: Catalogue) -> Result<ExitCode> {
    let op = Op {
        request_id: "command".to_owned(),
        now: SystemClock.now(),
        actor: Actor::System("command"),
    };
    match command {
        Command::RescanImages {
            registry,
            dry_run,
            registry_ca,
            no_ssl_verify,
            output,
        } => {
            let catalogue = match (registry_ca, no_ssl_verify) {
                (Some(file), _) => catalogue.trusting(Trust::SystemAnd(read(&file)?)),
                (None, true) => catalogue.trusting(Trust::Anybody),
                (None, false) => catalogue,
            };
            rescan(&op, &catalogue, &Rescan { registry, dry_run }, output).await
        }
        Command::ListImages { output } => list(&catalogue.images_list(&op).await?, output),
        Command::InspectImage { reference, output } => {
            let record = catalogue.image_get(&op, &reference).await?;
            let record = record.with_context(|| {
                format!("the catalogue has no image {reference}; see `bai etcd list-images`")
            })?;
            inspect(&record, output)
        }
        Command::SetImageResourceLimit {
            reference,
            slot,
            range,
        } => {
            let (min, max) = (range.min.as_deref(), range.max.as_deref());
            let image = catalogue
                .image_set_resource_limit(&op, &reference, &slot, min, max)
                .await?;
            let side = |text: Option<&str>| text.unwrap_or("as it was").to_owned();
            line(&format!("{image}: {slot} from {} to {}", side(min), side(max)))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Alias { alias, target } => {
            show_alias(&catalogue.image_alias(&op, &alias, &target).await?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Dealias { alias } => {
            if catalogue.image_dealias(&op, &alias).await? {
                line(&format!("removed {alias}"))?;
            } else {
                say(&format!("bai: there was no alias {alias}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::UpdateAliases {
            file,
            dry_run,
            output,
        } => {
            let pairs = parse_aliases(&read(&file)?)
                .with_context(|| format!("{} is no aliases file; see --help for its form", file.display()))?;
            let aliases = catalogue.image_update_aliases(&op, &pairs, dry_run).await?;
            show_aliases(&aliases, output)
        }
    }
}

async fn rescan(op: &Op, catalogue: &Catalogue, rescan: &Rescan, output: Output) -> Result<ExitCode> {
    let progress = ProgressLine::default();
    let summary = catalogue
        .image_rescan(op, rescan, &|event| progress.show(event))
        .await?;
    progress.end();
    if output.json {
        line(&serde_json::to_string(&summary)?)?;
    } else {
        summarise(&summary, rescan.dry_run)?;
    }
    Ok(if summary.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn summarise(summary: &RescanSummary, dry_run: bool) -> Result<()> {
    if summary.registries.is_empty() {
        say("bai: no registries are configured: put their URLs at config/docker/registry/<name>");
    }
    for scan in &summary.registries {
        if let Some(error) = &scan.error {
            say(&format!("bai: {error}"));
        }
        line(&format!(
            "{}: {}{} added, {} updated, {} unchanged, {} without kernel, {} malformed, {} failed",
            scan.registry,
            if dry_run { "would be: " } else { "" },
            scan.added,
            scan.updated,
            scan.unchanged,
            scan.no_kernel,
            scan.malformed,
            scan.failed
        ))?;
    }
    Ok(())
}

/// What a rescan does, on stderr: a line for each piece of news, and on a terminal a count that is written over.
#[derive(Default)]
struct ProgressLine(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    looked_at: usize,
    listed: usize,
    is_open: bool,
}

impl ProgressLine {
    fn show(&self, event: RescanEvent<'_>) {
        let mut counts = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            RescanEvent::Listed {
                registry,
                repositories,
                images,
            } => {
                counts.listed += images;
                counts.clear();
                say(&format!(
                    "{registry}: {images} images in {repositories} repositories"
                ));
            }
            RescanEvent::Image(ImageOutcome { image, change }) => {
                counts.looked_at += 1;
                let news = match change {
                    ImageChange::Added => Some(format!("{image}: added")),
                    ImageChange::Updated => Some(format!("{image}: updated")),
                    ImageChange::Malformed(reason) => Some(format!("{image}: skipped: {reason}")),
                    ImageChange::Failed(reason) => Some(format!("{image}: failed: {reason}")),
                    ImageChange::Unchanged | ImageChange::NoKernel => None,
                };
                if let Some(news) = news {
                    counts.clear();
                    say(&news);
                }
            }
        }
        counts.write();
    }

    fn end(&self) {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clear();
    }
}

impl Counts {
    fn write(&mut self) {
        if std::io::stderr().is_terminal() {
            // A terminal that is gone misses nothing.
            _ = crate::output::raw_error(
                format!("\r{} of {} images", self.looked_at, self.listed).as_bytes(),
            );
            self.is_open = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_open) {
            _ = crate::output::raw_error(b"\r\x1b[K");
        }
    }
}

fn list(records: &[ImageRecord], output: Output) -> Result<ExitCode> {
    if output.json {
        line(&Value::from_iter(records.iter().map(view)).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = records
        .iter()
        .map(|record| record.reference.canonical().len())
        .max()
        .unwrap_or(0);
    for record in records {
        let text = format!(
            "{:width$}  {:>14}  {}",
            record.reference.canonical(),
            record.size_bytes,
            record.aliases.join(" ")
        );
        line(text.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(record: &ImageRecord, output: Output) -> Result<ExitCode> {
    if output.json {
        line(&view(record).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!("image:        {}", record.reference))?;
    line(&format!("digest:       {}", record.digest))?;
    line(&format!("size:         {} bytes", record.size_bytes))?;
    line(&format!("aliases:      {}", record.aliases.join(" ")))?;
    line(&format!("accelerators: {}", record.accelerators.join(" ")))?;
    for (slot, limit) in &record.resource_limits {
        let min = limit.min.as_deref().unwrap_or("0");
        let max = limit.max.as_deref().unwrap_or("Infinity");
        line(&format!("{:13} {min} to {max}", format!("{slot}:")))?;
    }
    line("labels:")?;
    for (label, value) in &record.labels {
        line(&format!("  {label}={value}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An image with the names that the GraphQL API has for its parts.
fn view(record: &ImageRecord) -> Value {
    let limits = record.resource_limits.iter().map(|(slot, limit)| {
        let min = limit.min.as_deref().unwrap_or("0");
        let max = limit.max.as_deref().unwrap_or("Infinity");
        (slot.clone(), json!({ "min": min, "max": max }))
    });
    json!({
        "image": record.reference.canonical(),
        "registry": record.reference.registry,
        "name": record.reference.name,
        "tag": record.reference.tag,
        "digest": record.digest,
        "size_bytes": record.size_bytes,
        "aliases": record.aliases,
        "labels": record.labels,
        "resource_limits": Map::from_iter(limits),
        "supported_accelerators": record.accelerators,
    })
}

fn show_aliases(aliases: &[Alias], output: Output) -> Result<ExitCode> {
    if output.json {
        let view = aliases.iter().map(|alias| {
            json!({
                "alias": alias.name, "target": alias.target, "previous": alias.previous, "image": alias.image,
                "known": alias.is_known,
            })
        });
        line(&Value::from_iter(view).to_string())?;
    } else {
        aliases.iter().try_for_each(show_alias)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_alias(alias: &Alias) -> Result<()> {
    line(&format!("{} -> {}", alias.name, alias.target))?;
    if !alias.is_known {
        say(&format!("bai: the catalogue does not have {} yet", alias.image));
    }
    Ok(())
}

#[derive(Deserialize)]
struct AliasesFile {
    aliases: Vec<(String, String)>,
}

/// An image-aliases.yml (`http-api.md` 5.8).
fn parse_aliases(text: &str) -> Result<Vec<(String, String)>> {
    let file: AliasesFile = serde_saphyr::from_str(text)?;
    Ok(file.aliases)
}

fn read(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(cannot)?)
    };
    source
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    if text.len() as u64 > MAX_FILE {
        bail!("{} is larger than {MAX_FILE} bytes", path.display());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_one_side_at_least() {
        let sides = |text| parse_range(text).map(|range| (range.min, range.max));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(sides("2:4"), Ok((some("2"), some("4"))));
        assert_eq!(sides(":4"), Ok((None, some("4"))));
        assert_eq!(sides("2:"), Ok((some("2"), None)));
        assert!(sides(":").is_err() && sides("4").is_err() && sides("").is_err());
    }

    #[test]
    fn aliases_files_are_yaml_or_json() {
        let pair = |alias: &str, target: &str| (alias.to_owned(), target.to_owned());
        let yaml = "aliases:\n  - ['python:3.6', 'python:3.6-ubuntu']\n  - ['python', 'python:3.6']\n";
        let expected = vec![
            pair("python:3.6", "python:3.6-ubuntu"),
            pair("python", "python:3.6"),
        ];
        assert_eq!(parse_aliases(yaml).unwrap(), expected);
        let json = r#"{"aliases": [["a", "b:1"]]}"#;
        assert_eq!(parse_aliases(json).unwrap(), [pair("a", "b:1")]);
        for bad in [
            "",
            "aliases: 3",
            "aliases: [[a]]",
            "aliases: [[a, b, c]]",
            "other: []",
            "{",
        ] {
            assert!(parse_aliases(bad).is_err(), "{bad}");
        }
    }
}
