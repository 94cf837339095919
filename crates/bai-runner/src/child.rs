//! Child processes whose output becomes records: reading several pipes at once, in order, within limits.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bai_proto::runner::Record;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::outbox::Outbox;

/// Bytes of output that one run may have; the rest is read and dropped.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Which stream a pipe carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The pipes of a child, and how much it may still print in this run.
#[derive(Debug)]
pub struct Output {
    pipes: Vec<(Stream, std::fs::File)>,
    outbox: Outbox,
    left: usize,
    is_cut: bool,
}

impl Output {
    /// # Errors
    /// When a pipe cannot be made non-blocking.
    pub fn new(stdout: impl Into<OwnedFd>, stderr: impl Into<OwnedFd>, outbox: Outbox) -> io::Result<Self> {
        let pipes = vec![(Stream::Stdout, stdout.into()), (Stream::Stderr, stderr.into())];
        for (_, pipe) in &pipes {
            set_nonblocking(pipe.as_fd())?;
        }
        let pipes = pipes
            .into_iter()
            .map(|(stream, pipe): (Stream, OwnedFd)| (stream, pipe.into()))
            .collect();
        Ok(Self {
            pipes,
            outbox,
            left: MAX_OUTPUT,
            is_cut: false,
        })
    }

    /// A new run may print again.
    pub fn begin_run(&mut self) {
        self.left = MAX_OUTPUT;
        self.is_cut = false;
    }

    /// Waits until a pipe or `other` has something (or `milliseconds` have passed), passes on what the pipes have, and
    /// says whether `other` is ready.
    ///
    /// # Errors
    /// When polling fails.
    pub fn pump(&mut self, other: Option<BorrowedFd<'_>>, milliseconds: Option<u16>) -> io::Result<bool> {
        let mut polled: Vec<PollFd<'_>> = self
            .pipes
            .iter()
            .map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        polled.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        if polled.is_empty() {
            return Ok(true);
        }
        let timeout = milliseconds.map_or(PollTimeout::NONE, PollTimeout::from);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_other_ready =
            other.is_some() && polled.last().is_some_and(|polled| polled.any().unwrap_or(false));
        drop(polled);
        self.drain();
        Ok(is_other_ready)
    }

    /// Whether every pipe has ended.
    pub fn has_ended(&self) -> bool {
        self.pipes.is_empty()
    }

    /// Passes on what is in the pipes now, without waiting.
    pub fn drain(&mut self) {
        let mut pipes = std::mem::take(&mut self.pipes);
        pipes.retain_mut(|(stream, pipe)| self.drain_pipe(*stream, pipe));
        self.pipes = pipes;
    }

    /// False when the pipe has ended.
    fn drain_pipe(&mut self, stream: Stream, pipe: &mut std::fs::File) -> bool {
        let mut buffer = vec![0; CHUNK];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.pass_on(stream, &buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn pass_on(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = &bytes[..bytes.len().min(self.left)];
        self.left -= kept.len();
        if !kept.is_empty() {
            self.outbox.send(&match stream {
                Stream::Stdout => Record::Stdout(kept.to_vec()),
                Stream::Stderr => Record::Stderr(kept.to_vec()),
            });
        }
        if kept.len() < bytes.len() && !self.is_cut {
            self.is_cut = true;
            let mark = format!(
                "\n[output truncated: more than {} MiB in one run]\n",
                MAX_OUTPUT >> 20
            );
            self.outbox.send(&Record::Stderr(mark.into_bytes()));
        }
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
