//! The life of a daemon between its preparations and its exit code.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::limit::try_raise_open_files;
use super::log::LogGuard;
use super::pid_file::PidFile;
use crate::config::Loaded;

/// Runs `serve` to its end on `threads` (0: as many as there are processors), removes the PID file, and closes the log.
/// `role` is what the daemon is in sentences.
///
/// # Errors
/// Those of `serve`, which are logged, and when there are no threads.
pub fn live<C>(
    role: &str,
    loaded: &Loaded<C>,
    threads: usize,
    pid_file: Option<PidFile>,
    log: LogGuard,
    serve: impl Future<Output = Result<ExitCode>>,
) -> Result<ExitCode> {
    for note in &loaded.notes {
        tracing::warn!("{}: {note}", loaded.path.display());
    }
    try_raise_open_files();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build().context("cannot start threads")?;
    let ended = runtime.block_on(serve);
    // What still runs (a hash, the removal of a folder) must not hold the exit up.
    runtime.shutdown_background();
    if let Some(pid_file) = pid_file {
        pid_file.remove();
    }
    match &ended {
        Ok(_) => tracing::info!("the {role} has stopped"),
        Err(error) => tracing::error!("the {role} cannot run: {error:#}"),
    }
    drop(log);
    ended
}
