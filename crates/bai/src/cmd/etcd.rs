//! `bai etcd …`: what a server is configured with, in etcd or in the embedded store.

use std::process::ExitCode;

use anyhow::Result;
use bai_core::image::Catalogue;

use super::{images, keys};
use crate::site::SiteArgs;
use crate::wire::registries;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    site: SiteArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Keys(keys::Command),
    #[command(flatten)]
    Images(images::Command),
}

/// # Errors
/// With a sentence that says what to do.
pub async fn run(args: Args) -> Result<ExitCode> {
    let chosen = args.site.choose()?;
    let (config, _lock) = chosen.open_config().await?;
    match args.command {
        Command::Keys(command) => keys::run(command, &config).await,
        Command::Images(command) => {
            let registries = chosen.loaded.as_ref().map(registries).unwrap_or_default();
            images::run(command, Catalogue::new(config, registries)).await
        }
    }
}
