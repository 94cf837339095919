//! What a child prints becomes records, within limits.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use bai_proto::runner::Record;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::outbox::Outbox;

/// Bytes of output that one run may have; the rest is read and dropped, so that the program is not blocked for ever.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Bytes taken from a pipe before anything else has its turn: as much as the largest pipe holds.
const TURN: usize = 1 << 20;

/// Bytes of withheld output that are kept, the last ones.
const MAX_WITHHELD: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The pipes of a child, and how much it may still print in this run.
#[derive(Debug)]
pub struct Output {
    pipes: Vec<(Stream, File)>,
    outbox: Outbox,
    left: usize,
    is_cut: bool,
    withheld: Option<Vec<u8>>,
}

impl Output {
    /// # Errors
    /// When a pipe cannot be made non-blocking.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd, outbox: Outbox) -> io::Result<Self> {
        let mut pipes = Vec::new();
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            set_nonblocking(&pipe)?;
            pipes.push((stream, File::from(pipe)));
        }
        Ok(Self {
            pipes,
            outbox,
            left: MAX_OUTPUT,
            is_cut: false,
            withheld: None,
        })
    }

    /// A new run may print again.
    pub fn begin_run(&mut self) {
        self.left = MAX_OUTPUT;
        self.is_cut = false;
    }

    /// Keeps what is printed from now on from the user: what a program that starts says is of interest when it fails.
    pub fn withhold(&mut self) {
        self.withheld = Some(Vec::new());
    }

    /// The end of that, and the last of what was withheld.
    pub fn release(&mut self) -> Vec<u8> {
        self.withheld.take().unwrap_or_default()
    }

    /// The pipes that have not ended.
    pub fn pipes(&self) -> impl Iterator<Item = &File> {
        self.pipes.iter().map(|(_, pipe)| pipe)
    }

    /// Passes on what is in the pipes now, without waiting for more; whether there was anything.
    pub fn drain(&mut self) -> bool {
        let mut pipes = std::mem::take(&mut self.pipes);
        let mut found = false;
        pipes.retain_mut(|(stream, pipe)| self.drain_pipe(*stream, pipe, &mut found));
        self.pipes = pipes;
        found
    }

    /// False when the pipe has ended.
    fn drain_pipe(&mut self, stream: Stream, pipe: &mut File, found: &mut bool) -> bool {
        let mut buffer = [0; CHUNK];
        let mut taken = 0;
        while taken < TURN {
            match pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    match &mut self.withheld {
                        Some(withheld) => keep_last(withheld, &buffer[..count]),
                        None => self.pass_on(stream, &buffer[..count]),
                    }
                    taken += count;
                    *found = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Output of this run that came another way.
    pub fn pass_on(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = whole_characters(bytes, self.left);
        self.left -= kept.len();
        for piece in kept.chunks(TURN) {
            self.outbox.send(&match stream {
                Stream::Stdout => Record::Stdout(piece.to_vec()),
                Stream::Stderr => Record::Stderr(piece.to_vec()),
            });
        }
        if kept.len() < bytes.len() && !self.is_cut {
            self.is_cut = true;
            self.left = 0;
            let most = MAX_OUTPUT >> 20;
            self.outbox.complain(&format!(
                "\n[output truncated: more than {most} MiB in one run]\n"
            ));
        }
    }
}

fn keep_last(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    kept.drain(..kept.len().saturating_sub(MAX_WITHHELD));
}

/// The first `most` bytes, fewer if that would cut a character.
fn whole_characters(bytes: &[u8], most: usize) -> &[u8] {
    let mut end = most.min(bytes.len());
    let is_inside = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    for _ in 0..3 {
        if end > 0 && is_inside(end) {
            end -= 1;
        }
    }
    &bytes[..end]
}

/// # Errors
/// When the descriptor has no flags.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::whole_characters;

    #[test]
    fn characters_are_not_cut() {
        let text = "aé한🙂".as_bytes();
        let cuts: Vec<usize> = (0..=text.len())
            .map(|most| whole_characters(text, most).len())
            .collect();
        assert_eq!(cuts, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        assert_eq!(whole_characters(&[0x80; 9], 8).len(), 5);
    }
}
