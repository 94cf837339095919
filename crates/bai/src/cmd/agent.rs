//! `bai agent`: an agent of a site, as its `agent.toml` says.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::signal::unix::SignalKind;

use super::configuration::Look;
use crate::config::agent::AgentConfig;
use crate::config::{Environment, Loaded};
use crate::daemon::account::prepare_folder;
use crate::daemon::end::End;
use crate::daemon::life::live;
use crate::daemon::log;
use crate::daemon::notify::Notifier;
use crate::daemon::pid_file::PidFile;
use crate::node::Node;

const EXAMPLES: &str = "\
Examples:
  bai agent --config /etc/backend.ai/agent.toml
  bai agent --check-config                        says all that is wrong with it, and serves nothing
  bai agent --dump-config                         what it amounts to, without its passwords

SIGTERM ends the sessions of this host and leaves the site. SIGINT leaves the sessions running; the next start finds them
again. A second signal ends the agent at once.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    file: FileArgs,
    /// Log as debug.enabled in the configuration does
    #[arg(long)]
    debug: bool,
}

/// Which configuration, and what to do with it.
#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// The configuration [default: as BACKEND_CONFIG_FILE says, or the first of ./agent.toml,
    /// ~/.config/backend.ai/agent.toml and /etc/backend.ai/agent.toml]
    #[arg(short = 'f', long, visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    look: Look,
}

impl FileArgs {
    /// Reads the configuration. `None` when it was only to be looked at, which is done then.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn load(&self, environment: &Environment) -> Result<Option<Loaded<AgentConfig>>> {
        self.look.load(self.config.as_deref(), environment)
    }
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When the configuration is not valid or something will not start, with what to do about it.
pub fn run(args: &Args, verbose: u8) -> Result<ExitCode> {
    let environment = Environment::of_process();
    let Some(mut loaded) = args.file.load(&environment)? else {
        return Ok(ExitCode::SUCCESS);
    };
    loaded.config.debug.enabled |= args.debug;
    let pid_file = loaded.config.agent.pid_file.as_deref();
    let pid_file = pid_file.map(|path| PidFile::write(path, "agent")).transpose()?;
    if let Some(file) = &loaded.config.logging.file {
        prepare_folder(&file.path, 0o755, None)
            .with_context(|| format!("cannot make {} (logging.file.path)", file.path.display()))?;
    }
    let log = log::start(
        &loaded.config.logging,
        &loaded.config.debug,
        &environment,
        verbose,
    )?;
    let serving = serve(&loaded, Arc::new(Notifier::new(&environment)));
    live("agent", &loaded, 0, pid_file, log, serving)
}

async fn serve(loaded: &Loaded<AgentConfig>, notifier: Arc<Notifier>) -> Result<ExitCode> {
    // Before anything can take long: a signal during the start must not be lost.
    let mut end = End::listen()?;
    let _alive = notifier.keep_alive();

    let node = tokio::select! {
        started = Node::start(loaded, |status| notifier.status(status)) => started?,
        _ = end.received() => {
            tracing::info!("told to stop before everything had started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    notifier.ready(&node.saying);
    let destroys = end.received().await == SignalKind::terminate();
    notifier.stopping();
    if destroys {
        tracing::info!("stopping: the sessions of this host end, which a second signal cuts short");
    } else {
        tracing::info!("stopping: sessions go on and are found again at the next start");
    }
    tokio::select! {
        () = node.stop(destroys) => Ok(ExitCode::SUCCESS),
        signal = end.received() => {
            tracing::warn!("stopped at once; what was not ended is taken up at the next start");
            Ok(End::cut_short(signal))
        }
    }
}
