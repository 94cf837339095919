//! How a daemon is told to end.

use std::process::ExitCode;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the daemon.
#[derive(Debug)]
pub struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    /// From now on no signal is lost.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub async fn received(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }

    /// The exit code of a process that a second signal stopped.
    pub fn cut_short(signal: SignalKind) -> ExitCode {
        let number = u8::try_from(signal.as_raw_value()).unwrap_or_default();
        ExitCode::from(128_u8.saturating_add(number))
    }
}
