//! `bai gateway`: a manager with the API of a site, as its `manager.toml` says.
//!
//! What needs root comes first (PID file, keys, port, folders), then the user is changed, then the log begins, and only
//! then anything is heard from outside.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::configuration::Look;
use crate::config::{Environment, Loaded, ManagerConfig};
use crate::credentials::save_endpoint;
use crate::daemon::account::{Target, prepare_folder};
use crate::daemon::end::End;
use crate::daemon::life::live;
use crate::daemon::lock::lock;
use crate::daemon::notify::Notifier;
use crate::daemon::pid_file::PidFile;
use crate::daemon::tls::Certificate;
use crate::daemon::{listen, log};
use crate::wire::{Stack, StackOptions};

const EXAMPLES: &str = "\
Examples:
  bai gateway --config /etc/backend.ai/manager.toml
  bai gateway --check-config                      says all that is wrong with it, and serves nothing
  bai gateway --dump-config                       what it amounts to, without its passwords

SIGTERM and SIGINT let running requests end; a second one ends them. SIGHUP reads the TLS certificate again.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The configuration [default: as BACKEND_CONFIG_FILE says, or the first of ./manager.toml,
    /// ~/.config/backend.ai/manager.toml and /etc/backend.ai/manager.toml]
    #[arg(short = 'f', long, visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    look: Look,
    /// Log as debug.enabled in the configuration does
    #[arg(long)]
    debug: bool,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When the configuration is not valid or something will not start, with what to do about it.
pub fn run(args: &Args, verbose: u8) -> Result<ExitCode> {
    let environment = Environment::of_process();
    let Some(mut loaded) = args
        .look
        .load::<ManagerConfig>(args.config.as_deref(), &environment)?
    else {
        return Ok(ExitCode::SUCCESS);
    };
    loaded.config.debug.enabled |= args.debug;
    let Prepared {
        pid_file,
        certificate,
        listener,
    } = prepare(&loaded)?;
    let log = log::start(
        &loaded.config.logging,
        &loaded.config.debug,
        &environment,
        verbose,
    )?;
    let notifier = Arc::new(Notifier::new(&environment));
    let serving = serve(&loaded, listener, certificate, notifier);
    let threads = loaded.config.manager.num_proc;
    live("manager", &loaded, threads, pid_file, log, serving)
}

/// What was made as root, if root started us.
struct Prepared {
    pid_file: Option<PidFile>,
    certificate: Option<Arc<Certificate>>,
    listener: TcpListener,
}

/// Does what root may have to do, and becomes the configured user.
fn prepare(loaded: &Loaded) -> Result<Prepared> {
    let (manager, bai) = (&loaded.config.manager, &loaded.config.bai);
    let target = Target::find(manager)?;
    let pid_file = manager
        .pid_file
        .as_deref()
        .map(|path| PidFile::write(path, "manager"))
        .transpose()?;
    let certificate = match (&manager.ssl_cert, &manager.ssl_privkey) {
        (Some(chain), Some(key)) if manager.ssl_enabled => Some(Certificate::read(
            (chain, "manager.ssl-cert"),
            (key, "manager.ssl-privkey"),
        )?),
        _ => None,
    };
    let listener = listen::bind(&manager.service_addr, "manager.service-addr")?;
    let log = loaded.config.logging.file.as_ref();
    let folders = [
        log.map(|file| (&file.path, 0o755, "logging.file.path")),
        bai.data_dir
            .as_ref()
            .map(|folder| (folder, 0o700, "bai.data-dir")),
    ];
    for (folder, mode, setting) in folders.into_iter().flatten() {
        prepare_folder(folder, mode, target.as_ref())
            .with_context(|| format!("cannot make {} ({setting})", folder.display()))?;
    }
    if let Some(target) = target {
        target.become_it()?;
    }
    Ok(Prepared {
        pid_file,
        certificate,
        listener,
    })
}

async fn serve(
    loaded: &Loaded,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    notifier: Arc<Notifier>,
) -> Result<ExitCode> {
    // Before anything can take long: a signal during the start must not be lost.
    let mut end = End::listen()?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let _alive = notifier.keep_alive();

    let data_dir = loaded.config.bai.data_dir.as_deref();
    // Two agents on one directory would take each other's sessions for their own.
    let hint = "another server uses this directory; stop it, or give each its own bai.data-dir";
    let _lock = match data_dir.filter(|_| loaded.config.bai.local_agent) {
        Some(data_dir) => Some(lock(data_dir, hint)?),
        None => None,
    };
    let tls = certificate.as_ref().map(Certificate::server).transpose()?;
    let options = StackOptions::cluster(loaded, listener, tls)?;
    notifier.status("waiting for the site's services");
    let stack = tokio::select! {
        started = Stack::start(options) => started?,
        _ = end.received() => {
            tracing::info!("told to stop before everything had started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    if let Some(data_dir) = data_dir {
        // For `bai env`, on this host.
        save_endpoint(data_dir, &stack.endpoint)?;
    }
    tracing::info!(
        namespace = loaded.config.etcd.namespace,
        version = env!("CARGO_PKG_VERSION"),
        "the API listens on {}",
        stack.endpoint
    );
    notifier.ready(&format!("serving {}", stack.endpoint));
    loop {
        tokio::select! {
            _ = end.received() => break,
            _ = hang_up.recv() => reload(certificate.as_deref()),
        }
    }
    notifier.stopping();
    tracing::info!("stopping: running requests may end, which a second signal cuts short");
    tokio::select! {
        () = stack.stop() => Ok(ExitCode::SUCCESS),
        signal = end.received() => {
            tracing::warn!("stopped at once; what was not ended is taken up at the next start");
            Ok(End::cut_short(signal))
        }
    }
}

fn reload(certificate: Option<&Certificate>) {
    match certificate.map(Certificate::reload) {
        None => tracing::info!("SIGHUP: there is no certificate to be read again"),
        Some(Ok(())) => tracing::info!("SIGHUP: the certificate was read again"),
        Some(Err(error)) => tracing::error!("the certificate in use stays: {error:#}"),
    }
}
