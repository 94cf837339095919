//! `bai image`: the images that sessions of a server can be made of.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::json;

use super::configured_client;
use crate::output::{line, say};

const EXAMPLES: &str = "\
Examples:
  eval \"$(bai env)\"                          the server of this machine, as its superadmin
  bai image add python:3.12-slim             any image; it need not be made for sessions
  bai run python:3.12-slim -c 'print(6*7)'";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Offer one more image of the agents' container engines, which pull it if they do not have it
    #[command(after_help = EXAMPLES)]
    Add {
        /// As the container engine calls it
        name: String,
        /// JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

/// # Errors
/// When there is no server, or none of its agents can offer the image.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Command::Add { name, json } = args.command;
    let client = configured_client()?.context(
        "no server is configured: start one with `bai up`, and point this shell at it with `eval \"$(bai env)\"`",
    )?;
    let body = json!({ "name": name });
    let added = client.call(Method::POST, "/resource/images", Some(&body)).await?;
    if json {
        line(&added.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let image = added["image"]
        .as_str()
        .context("the server does not say what it has added")?;
    line(&format!("{image} is in the catalogue"))?;
    for (agent, why) in added["refusals"].as_object().into_iter().flatten() {
        say(&format!(
            "bai: {agent} does not offer it: {}",
            why.as_str().unwrap_or_default()
        ));
    }
    Ok(ExitCode::SUCCESS)
}
