//! A child process in a group of its own, its output becoming records, its end noticed even while others hold its pipes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::outbox::Outbox;
use crate::output::Output;
use crate::strays::Strays;

/// How often a process is asked whether it has ended, on systems that do not tell.
const EXIT_POLL_MILLISECONDS: u16 = 20;

#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    output: Output,
    /// Readable when the process has ended; none where the system is too old for it.
    exit: Option<OwnedFd>,
    end: Option<End>,
}

/// What [`Process::pump`] has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub output: bool,
    /// One of the other descriptors has something, or has ended.
    pub other: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct End(ExitStatus);

impl Process {
    /// Starts a command, with our end of the pipe that it reads from if its input is to be a pipe.
    ///
    /// # Errors
    /// When it cannot be started or followed.
    pub fn spawn(command: &mut Command, outbox: Outbox) -> io::Result<(Self, Option<ChildStdin>)> {
        let mut child = command
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        Self::follow(child, outbox).map(|process| (process, stdin))
    }

    fn follow(mut child: Child, outbox: Outbox) -> io::Result<Self> {
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let output = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => Output::new(stdout.into(), stderr.into(), outbox),
            _ => Err(io::Error::other("it has no output")),
        };
        match output {
            Ok(output) => Ok(Self {
                child,
                pid,
                output,
                exit: exit_of(pid),
                end: None,
            }),
            Err(error) => {
                _ = child.kill().and_then(|()| child.wait());
                Err(error)
            }
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Whether its end has been seen by [`Process::pump`].
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Waits until the process prints something, ends, one of `others` has something, or `milliseconds` have passed;
    /// passes on what was printed.
    ///
    /// # Errors
    /// When polling fails.
    pub fn pump(&mut self, others: &[BorrowedFd<'_>], milliseconds: Option<u16>) -> io::Result<Seen> {
        let is_alive = self.end.is_none();
        let exit = self.exit.as_ref().filter(|_| is_alive);
        let milliseconds = match exit {
            None if is_alive => Some(EXIT_POLL_MILLISECONDS.min(milliseconds.unwrap_or(u16::MAX))),
            _ => milliseconds,
        };
        let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled: Vec<PollFd<'_>> = self.output.pipes().map(File::as_fd).map(watched).collect();
        let outputs = polled.len();
        polled.extend(exit.map(|exit| watched(exit.as_fd())));
        polled.extend(others.iter().copied().map(watched));
        match poll(
            &mut polled,
            milliseconds.map_or(PollTimeout::NONE, PollTimeout::from),
        ) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Seen::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |polled: &PollFd<'_>| polled.any().unwrap_or(false);
        let other = polled[polled.len() - others.len()..].iter().any(is_ready);
        let may_have_ended = is_alive && (exit.is_none() || polled.get(outputs).is_some_and(is_ready));
        drop(polled);
        if may_have_ended {
            self.end = self.child.try_wait()?.map(End);
        }
        // What was printed before something else happened comes before it.
        let output = self.output.drain();
        Ok(Seen { output, other })
    }

    /// Waits for its end; false when the time is over first.
    ///
    /// # Errors
    /// When polling fails.
    pub fn ends_within(&mut self, time: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + time;
        while !self.has_ended() {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            if left == 0 {
                return Ok(false);
            }
            self.pump(&[], Some(u16::try_from(left).unwrap_or(u16::MAX)))?;
        }
        Ok(true)
    }

    /// Ends the process, if it has not ended, and says how it did.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn bury(mut self, strays: &Strays) -> io::Result<End> {
        let end = match self.end {
            Some(end) => Ok(end),
            None => self.child.kill().and_then(|()| self.child.wait()).map(End),
        };
        self.output.drain();
        strays.adopt(self.output);
        end
    }
}

/// A descriptor that becomes readable when a child ends.
#[expect(unsafe_code, reason = "a system call that no library of ours wraps")]
fn exit_of(pid: Pid) -> Option<OwnedFd> {
    // SAFETY: the call takes two integers, and what it returns is a new descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: as above.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl End {
    /// The exit code, or 128 and the number of the signal, as shells count.
    pub fn code(self) -> i32 {
        let signal = self.0.signal().map(|signal| 128 + signal);
        self.0.code().or(signal).unwrap_or(-1)
    }

    pub fn is_exit(self) -> bool {
        self.0.code().is_some()
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {}", signal.as_str()),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            (None, None) => f.write_str("is gone"),
        }
    }
}
