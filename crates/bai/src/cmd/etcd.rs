//! `bai etcd …`: what a server is configured with, in etcd or in the embedded store.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bai_core::image::Catalogue;

use super::{data_dir, images, up};
use crate::wire::open_embedded_config;

const RUNNING: &str = "a server runs on this directory, and its configuration belongs to it: stop the server (its sessions \
                       go on), run this command again and start the server again; or name another directory with --data-dir";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory of a server on this machine, which must not be running
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Images(images::Command),
}

/// # Errors
/// With a sentence that says what to do.
pub async fn run(args: Args) -> Result<ExitCode> {
    let data_dir = data_dir(args.data_dir)?;
    let _lock = data_dir
        .exists()
        .then(|| up::lock(&data_dir, RUNNING))
        .transpose()?;
    let config = open_embedded_config(&data_dir).await?;
    match args.command {
        Command::Images(command) => {
            images::run(command, Catalogue::new(config, bai_registry::Options::default())).await
        }
    }
}
