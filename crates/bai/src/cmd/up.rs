//! `bai up`: a server on this machine, with its data on disk.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::data_dir;
use crate::credentials::{Credentials, save_endpoint};
use crate::daemon::end::End;
use crate::daemon::limit::try_raise_open_files;
use crate::daemon::lock::lock;
use crate::output::say;
use crate::sessions::RuntimeChoice;
use crate::wire::{EmbeddedOptions, Stack, StackOptions};

const EXAMPLES: &str = "\
Examples:
  bai up                                          until Ctrl-C
  bai up --data-dir /srv/bai --listen 127.0.0.1:9000";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where everything is kept [default: bai below the user's data folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Serve other hosts although sessions are only sandboxed processes
    #[arg(long)]
    allow_process_runtime: bool,
    /// What sessions are: containers, sandboxed processes, or what fits this machine
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeChoice,
    /// The engine's network for sessions in containers, such as `none` [default: the engine's]. Their services are reached
    /// in any
    #[arg(long, value_name = "NETWORK")]
    docker_network: Option<String>,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When something will not start, with what to do about it.
pub async fn run(args: Args) -> Result<()> {
    try_raise_open_files();
    let data_dir = data_dir(args.data_dir)?;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data_dir);
    made.with_context(|| format!("cannot make {}", data_dir.display()))?;
    let hint = "another server uses this directory; stop it or choose another one with --data-dir";
    let _lock = lock(&data_dir, hint)?;
    // Before anything can take long: a signal during the start must not be lost.
    let mut end = End::listen()?;
    let options = StackOptions::embedded(EmbeddedOptions {
        data_dir: data_dir.clone(),
        listen: args.listen,
        ephemeral: false,
        only_image: None,
        allow_process_runtime: args.allow_process_runtime,
        runtime: args.runtime,
        docker_network: args.docker_network,
    })?;
    let stack = Stack::start(options).await?;
    save_endpoint(&data_dir, &stack.endpoint)?;
    greet(&stack, &data_dir);
    end.received().await;
    say("bai: stopping; sessions go on and are found again at the next start");
    stack.stop().await;
    Ok(())
}

fn greet(stack: &Stack, data_dir: &Path) {
    say(&format!("bai: the API listens on {}", stack.endpoint));
    if let Some(Credentials { superadmin, user }) = &stack.new_credentials {
        say(&format!(
            "bai: made the accounts {} and {}; their keys are in {}",
            superadmin.email,
            user.email,
            data_dir.join("credentials.json").display()
        ));
    }
    say(&format!(
        "bai: point a shell's clients here with  eval \"$(bai env --data-dir '{}')\"",
        data_dir.display()
    ));
    let sessions = stack.sessions.as_deref().unwrap_or("there are no sessions here");
    say(&format!("bai: {sessions}; Ctrl-C stops the server"));
}
