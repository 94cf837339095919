//! The conversation with `bai-runner sandbox`: start it, tell it what to build, hear what it got.
//!
//! Invariants: a sandbox that is not let go ends by itself, because the control socket closes with [`Launched`]; the
//! outer process is always reaped here.
//!
//! Not here: what is asked for (`super`).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bai_proto::sandbox::{GO, SandboxReport, SandboxSpec};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::handle::Handle;
use crate::runtime::RuntimeError;

/// A sandbox takes milliseconds; this is for machines that are stuck.
const DEADLINE: Duration = Duration::from_secs(20);
const MAX_REPORT: u64 = 1 << 20;

/// A sandbox that is built and waits for the word to go.
#[derive(Debug)]
pub struct Launched {
    pub report: SandboxReport,
    control: UnixStream,
}

/// Builds a sandbox.
pub async fn launch(runner: &Path, spec: &SandboxSpec) -> Result<Launched, RuntimeError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut control = UnixStream::from_std(ours)?;
    let mut command = Command::new(runner);
    command
        // The id is for whoever reads the list of processes.
        .args(["sandbox", &spec.kernel_id])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let cannot = |what: &str, error: std::io::Error| RuntimeError::Start(format!("cannot {what}: {error}"));
    let mut outer = command
        .spawn()
        .map_err(|error| cannot(&format!("run {}", runner.display()), error))?;
    // Otherwise this process would keep the other end open, and never see it close.
    drop(command);
    let conversation = async {
        let mut line = serde_json::to_vec(spec).map_err(std::io::Error::from)?;
        line.push(b'\n');
        control.write_all(&line).await?;
        let mut line = Vec::new();
        BufReader::new((&mut control).take(MAX_REPORT))
            .read_until(b'\n', &mut line)
            .await?;
        serde_json::from_slice::<SandboxReport>(&line).map_err(|_| {
            let log = Path::new(&spec.socket_dir).join("runner.log");
            RuntimeError::Start(format!(
                "the sandbox ended without a report, see {}",
                log.display()
            ))
        })
    };
    let report = tokio::time::timeout(DEADLINE, conversation).await;
    let report =
        report.unwrap_or_else(|_| Err(RuntimeError::Start("the sandbox does not get ready".to_owned())));
    if report.is_err() {
        let _ = outer.start_kill();
    }
    let _ = tokio::time::timeout(DEADLINE, outer.wait()).await;
    let report = report?;
    match report.fatal {
        Some(reason) => {
            if report.pid > 1 {
                let _ = tokio::time::timeout(DEADLINE, Handle::reap_child(report.pid)).await;
            }
            Err(RuntimeError::Start(reason))
        }
        None => Ok(Launched { report, control }),
    }
}

impl Launched {
    /// Lets the session start. The socket that comes back is the leash of a session that dies with its agent.
    pub async fn go(mut self) -> Result<UnixStream, RuntimeError> {
        self.control.write_all(&[GO]).await?;
        Ok(self.control)
    }
}
