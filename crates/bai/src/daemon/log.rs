//! Where the daemon's log goes and how it looks (`http-api.md` 5.3): stderr, a rotating file, or both, each in a form of
//! its own.
//!
//! Records of the file are written by a thread of its own, so that a slow disk holds nobody up; when it falls far behind,
//! new records are dropped; what waits at the end is written then.

use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, Result};
use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use super::rotate::Rotating;
use crate::config::{Debug, Environment, Format, Level, Logging};

/// Records of the file that may wait to be written.
const BACKLOG: usize = 64 * 1024;
/// Names of 19.06's own loggers, by which it means the whole program.
const WHOLE: [&str; 2] = ["", "ai.backend"];

/// Holds the log open; dropping it writes what still waits.
#[derive(Debug)]
pub struct LogGuard {
    _file: Option<WorkerGuard>,
}

/// Starts logging as the configuration says. `BAI_LOG` takes the place of the levels, `verbose` and `debug.enabled` raise
/// them.
///
/// # Errors
/// When the file cannot be opened or a filter makes no sense.
pub fn start(logging: &Logging, debug: &Debug, environment: &Environment, verbose: u8) -> Result<LogGuard> {
    let filter = match environment.get("BAI_LOG") {
        Some(filter) => EnvFilter::try_new(filter).context("BAI_LOG is no filter of logs")?,
        None => EnvFilter::new(directives(logging, debug.enabled, verbose)),
    };
    let console = logging.to_console().then(|| {
        let colored = logging.console.colored && io::stderr().is_terminal();
        layer(logging.console.format, colored, io::stderr)
    });
    let (file, guard) = match &logging.file {
        None => (None, None),
        Some(file) => {
            let path = file.path.join(&file.filename);
            let rotating = Rotating::open(path.clone(), file.rotation_size, file.backup_count);
            let rotating = rotating
                .with_context(|| format!("cannot write the log {} (logging.file)", path.display()))?;
            let (writer, guard) = NonBlockingBuilder::default()
                .buffered_lines_limit(BACKLOG)
                .thread_name("log")
                .finish(rotating);
            (Some(layer(file.format, false, writer)), Some(guard))
        }
    };
    let started = tracing_subscriber::registry()
        .with(filter)
        .with(console)
        .with(file)
        .try_init();
    // A program that embeds this one may have its own.
    _ = started;
    Ok(LogGuard { _file: guard })
}

fn layer<S, W>(format: Format, colored: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colored);
    match format {
        Format::Simple => layer.without_time().with_target(false).boxed(),
        Format::Verbose => layer.boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// The filter that the levels amount to.
fn directives(logging: &Logging, debug: bool, verbose: u8) -> String {
    let mut directives = vec![word(logging.level).to_owned()];
    let whole = WHOLE.iter().find_map(|name| logging.pkg_ns.get(*name));
    let ours = match (verbose, debug) {
        (0, false) => whole.map(|level| word(*level)),
        (0 | 1, _) => Some("debug"),
        _ => Some("trace"),
    };
    if let Some(level) = ours {
        directives.push(format!("bai={level}"));
    }
    for (name, level) in &logging.pkg_ns {
        // A name of a module of ours; the original's others name nothing here.
        if name.starts_with("bai") {
            directives.push(format!("{}={}", name.replace('.', "::"), word(*level)));
        }
    }
    directives.join(",")
}

fn word(level: Level) -> &'static str {
    match level {
        Level::NotSet => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warning => "warn",
        Level::Error | Level::Critical => "error",
    }
}
