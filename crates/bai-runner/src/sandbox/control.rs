//! The runner's end of the control socket: the specification in, the report out, the word to go.
//!
//! Not here: what the specification means.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bai_proto::sandbox::{GO, SandboxReport, SandboxSpec};

/// The longest specification that is read; a real one has a few kilobytes.
const MAX_SPEC: u64 = 1 << 20;

/// Why there will be no sandbox, as a sentence for the agent.
#[derive(Debug)]
pub struct Fatal(pub String);

/// Turns errors into [`Fatal`] by saying what could not be done.
pub trait OrFatal<T> {
    fn or_fatal(self, what: impl Display) -> Result<T, Fatal>;
}

impl<T, E: Display> OrFatal<T> for Result<T, E> {
    fn or_fatal(self, what: impl Display) -> Result<T, Fatal> {
        self.map_err(|error| Fatal(format!("cannot {what}: {error}")))
    }
}

/// The control socket.
pub struct Control(UnixStream);

impl Control {
    /// Takes the socket over from standard input.
    pub fn from_stdin() -> io::Result<Self> {
        Ok(Self(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?)))
    }

    pub fn read_spec(&self) -> Result<SandboxSpec, Fatal> {
        let mut line = Vec::new();
        let read = BufReader::new((&self.0).take(MAX_SPEC)).read_until(b'\n', &mut line);
        read.or_fatal("read the sandbox specification")?;
        serde_json::from_slice(&line).or_fatal("understand the sandbox specification")
    }

    /// A report that cannot be delivered is dropped: the agent is gone, and the wait for its word ends the sandbox.
    pub fn report(&self, report: &SandboxReport) {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        let _ = (&self.0).write_all(&line);
    }

    /// `pid` is the first process where there is one already, for its parent to reap; else 0.
    pub fn report_fatal(&self, pid: i32, Fatal(reason): Fatal) {
        self.report(&SandboxReport {
            pid,
            fatal: Some(reason),
            ..SandboxReport::default()
        });
    }

    /// Whether the agent wants the session to start; false when the agent is gone.
    pub fn wait_for_go(&self) -> bool {
        let mut word = [0];
        matches!((&self.0).read(&mut word), Ok(1)) && word[0] == GO
    }

    /// Lets go of the agent: neither side learns anything more from the other.
    pub fn hang_up(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the agent's end is closed, to be asked when the socket is readable.
    pub fn is_closed(&self) -> bool {
        !matches!((&self.0).read(&mut [0; 64]), Ok(1..))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Protections in force and protections refused, collected while the sandbox is built.
#[derive(Default)]
pub struct Ledger {
    report: SandboxReport,
}

impl Ledger {
    pub fn enforced(&mut self, protection: impl Into<String>) {
        self.report.enforced.push(protection.into());
    }

    pub fn refused(&mut self, protection: &str, reason: impl Display) {
        let refusal = bai_proto::sandbox::Refusal {
            protection: protection.to_owned(),
            reason: reason.to_string(),
        };
        self.report.refused.push(refusal);
    }

    /// Notes the outcome of a step that a sandbox can do without.
    pub fn note<E: Display>(&mut self, protection: &str, outcome: Result<(), E>) {
        match outcome {
            Ok(()) => self.enforced(protection),
            Err(error) => self.refused(protection, error),
        }
    }

    pub fn into_report(self, pid: i32) -> SandboxReport {
        SandboxReport { pid, ..self.report }
    }
}
