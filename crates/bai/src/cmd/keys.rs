//! The commands on single keys of the configuration store (`http-api.md` 5.7): put, put-json, get, list, delete.
//!
//! They take an opened [`Config`], so that they know nothing of where it is.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bai_backplane::config::{Config, flatten};
use serde::Serialize as _;
use serde_json::{Map, Value};

use crate::output::{line, say};

/// Bytes of a file for `put-json`.
const MAX_FILE: u64 = 4 << 20;
/// What a site cannot do without: where the status and the registrations are.
const PROTECTED: [&str; 2] = ["manager/", "nodes/"];

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write one key
    #[command(after_help = "Example:\n  bai etcd put config/redis/addr 127.0.0.1:6379")]
    Put {
        key: String,
        value: String,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Write the members of a JSON object below a key, with all that is in them
    #[command(after_help = "\
A member that is an object becomes keys below its name; its member \"\" is the name's own value.
Example:
  echo '{\"index.docker.io\": \"https://registry-1.docker.io\"}' | bai etcd put-json config/docker/registry -")]
    PutJson {
        key: String,
        /// `-` is stdin
        file: PathBuf,
        #[command(flatten)]
        scope: ScopeArgs,
        /// Print what would be written, and write nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the value of a key; exit with 1 when there is none
    Get {
        key: String,
        /// Everything that begins with KEY, as a JSON object
        #[arg(long)]
        prefix: bool,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// List keys and values
    List {
        /// What the keys begin with [default: all]
        #[arg(default_value = "")]
        prefix: String,
        /// A JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Delete a key
    #[command(visible_alias = "del")]
    Delete {
        key: String,
        /// Everything that begins with KEY, letter by letter: `a` includes `ab/c`
        #[arg(long)]
        prefix: bool,
        #[command(flatten)]
        scope: ScopeArgs,
        /// Print what would be deleted, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub struct ScopeArgs {
    /// For whom the setting is; reading MERGED takes the narrowest that has it
    #[arg(short, long, value_enum, ignore_case = true, default_value = "merged")]
    scope: Scope,
    /// The scaling group of SGROUP and MERGED
    #[arg(long, value_name = "NAME")]
    sgroup: Option<String>,
    /// The agent of NODE and MERGED
    #[arg(long, value_name = "AGENT")]
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scope {
    Merged,
    Global,
    Sgroup,
    Node,
}

impl ScopeArgs {
    /// The places of a key in this scope, the narrowest first.
    fn places(&self, key: &str) -> Result<Vec<String>> {
        let key = key.strip_prefix('/').unwrap_or(key);
        let node = self
            .node
            .as_ref()
            .map(|node| format!("nodes/agents/{node}/{key}"));
        let sgroup = self.sgroup.as_ref().map(|name| format!("sgroup/{name}/{key}"));
        Ok(match self.scope {
            Scope::Global => vec![key.to_owned()],
            Scope::Node => vec![node.context("--scope NODE needs the agent: add --node")?],
            Scope::Sgroup => vec![sgroup.context("--scope SGROUP needs the scaling group: add --sgroup")?],
            Scope::Merged => [node, sgroup, Some(key.to_owned())]
                .into_iter()
                .flatten()
                .collect(),
        })
    }

    /// The one place of a key that is written.
    fn place(&self, key: &str) -> Result<String> {
        match self.places(key)?.as_slice() {
            [place] => Ok(place.clone()),
            _ => bail!("say which of them with --scope GLOBAL, SGROUP or NODE"),
        }
    }
}

/// Does one of the commands.
///
/// # Errors
/// With a sentence that says what to do.
pub async fn run(command: Command, config: &Config) -> Result<ExitCode> {
    match command {
        Command::Put { key, value, scope } => {
            config.put(&filled(scope.place(&key)?)?, &value).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::PutJson {
            key,
            file,
            scope,
            dry_run,
        } => put_json(config, &scope.place(&key)?, &file, dry_run).await,
        Command::Get {
            key,
            prefix: true,
            scope,
        } => get_prefix(config, &scope.places(&key)?).await,
        Command::Get { key, scope, .. } => get(config, &scope.places(&key)?).await,
        Command::List { prefix, json } => list(config, &prefix, json).await,
        Command::Delete {
            key,
            prefix,
            scope,
            dry_run,
        } => delete(config, &filled(scope.place(&key)?)?, prefix, dry_run).await,
    }
}

fn filled(key: String) -> Result<String> {
    if key.is_empty() {
        bail!("the key must not be empty");
    }
    Ok(key)
}

async fn put_json(config: &Config, key: &str, file: &Path, dry_run: bool) -> Result<ExitCode> {
    let named = || format!("{} cannot be used", file.display());
    let text = read(file).with_context(named)?;
    let object: Map<String, Value> = serde_json::from_str(&text)
        .context("it must be a JSON object")
        .with_context(named)?;
    let pairs = flatten(key, &object).with_context(named)?;
    if dry_run {
        for (key, value) in &pairs {
            line(&format!("{key}\t{value}"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    config.put_all(&pairs).await?;
    say(&format!("bai: wrote {} keys", pairs.len()));
    Ok(ExitCode::SUCCESS)
}

async fn get(config: &Config, places: &[String]) -> Result<ExitCode> {
    for place in places {
        if let Some(value) = config.get(place).await? {
            line(&value)?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::FAILURE)
}

async fn get_prefix(config: &Config, places: &[String]) -> Result<ExitCode> {
    let mut merged = Map::new();
    // The narrowest last, so that its members stay.
    for place in places.iter().rev() {
        if let Value::Object(members) = config.subtree(place).await? {
            merged.extend(members);
        }
    }
    line(&indented(&Value::Object(merged))?)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(config: &Config, prefix: &str, json: bool) -> Result<ExitCode> {
    let pairs = config.prefix(prefix).await?;
    if json {
        let object = pairs.into_iter().map(|(key, value)| (key, Value::String(value)));
        line(&indented(&Value::Object(object.collect()))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in pairs {
        line(&format!("{key}\t{value}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(config: &Config, key: &str, is_prefix: bool, dry_run: bool) -> Result<ExitCode> {
    if is_prefix
        && let Some(kept) = PROTECTED
            .iter()
            .find(|kept| kept.starts_with(key) && key != **kept)
    {
        bail!("`{key}` includes {kept}, which the site needs: name the keys more closely");
    }
    if dry_run {
        let keys = match is_prefix {
            true => config
                .prefix(key)
                .await?
                .into_iter()
                .map(|(key, _)| key)
                .collect(),
            false => match config.get(key).await? {
                Some(_) => vec![key.to_owned()],
                None => Vec::new(),
            },
        };
        for key in keys {
            line(&key)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let deleted = match is_prefix {
        true => config.delete_prefix(key).await?,
        false => u64::from(config.delete(key).await?),
    };
    say(&format!("bai: deleted {deleted} keys"));
    Ok(ExitCode::SUCCESS)
}

/// JSON as 19.06 prints it, four spaces deep.
fn indented(value: &Value) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value.serialize(&mut serializer)?;
    Ok(String::from_utf8(text)?)
}

/// A file or stdin, as text.
fn read(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)?
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)
    };
    read?;
    if text.len() as u64 > MAX_FILE {
        bail!("it is larger than 4 MiB");
    }
    Ok(text)
}
