//! The standard input of a program: what the user types goes in, and whether the program is waiting for it.
//!
//! A pipe does not tell whether anybody reads from it. But the system tells which call each thread is in, so a program that
//! sits in `read(0)` on our empty pipe is known to wait, whatever language it is written in. Programs that wait in other
//! ways (Node polls) are not noticed; what is typed reaches them all the same.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::ChildStdin;

use crate::output::set_nonblocking;

/// Our end of the pipe.
#[derive(Debug)]
pub struct Stdin {
    pipe: ChildStdin,
    /// What the other end is called below `/proc/<pid>/fd`.
    name: String,
    /// How often something was typed.
    typed: u64,
}

impl Stdin {
    /// # Errors
    /// When the pipe cannot be made non-blocking: the thread that hears the agent writes to it.
    pub fn new(pipe: ChildStdin) -> io::Result<Self> {
        set_nonblocking(&pipe)?;
        let inode = fs::metadata(format!("/proc/self/fd/{}", pipe.as_raw_fd()))?.ino();
        Ok(Self {
            pipe,
            name: format!("pipe:[{inode}]"),
            typed: 0,
        })
    }

    /// Types a line. What a program that does not read has no room for is dropped: false then.
    pub fn type_line(&mut self, text: &str) -> bool {
        self.typed += 1;
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        let line = format!("{text}{newline}");
        match self.pipe.write_all(line.as_bytes()) {
            // A program that has closed its end does not want to hear; that is its choice.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
            written => written.is_ok(),
        }
    }

    /// Whether some thread of some process is blocked in reading it.
    pub fn is_awaited(&self) -> bool {
        // Nobody can be blocked while something is left to read.
        matches!(unread(&self.pipe), Ok(0)) && self.is_read_by_somebody()
    }

    fn is_read_by_somebody(&self) -> bool {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut numbered = processes
            .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
            .map(|entry| entry.path());
        numbered.any(|process| {
            let is_ours = |descriptor: &str| {
                fs::read_link(process.join("fd").join(descriptor))
                    .is_ok_and(|link| link.as_os_str() == self.name.as_str())
            };
            // Some read a copy of their descriptor 0.
            is_ours("0")
                && fs::read_dir(process.join("task"))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter_map(|thread| descriptor_read(&thread.path()))
                    .any(|descriptor| is_ours(&descriptor))
        })
    }
}

/// What a thread is reading from.
fn descriptor_read(thread: &std::path::Path) -> Option<String> {
    let call = fs::read_to_string(thread.join("syscall")).ok()?;
    let descriptor = call
        .strip_prefix(&format!("{} 0x", libc::SYS_read))?
        .split(' ')
        .next()?;
    Some(u32::from_str_radix(descriptor, 16).ok()?.to_string())
}

nix::ioctl_read_bad!(
    /// Bytes in a pipe.
    bytes_in_pipe,
    libc::FIONREAD,
    libc::c_int
);

#[expect(unsafe_code, reason = "an ioctl of pipes")]
fn unread(pipe: &ChildStdin) -> nix::Result<libc::c_int> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and this request writes one integer to where the pointer says.
    unsafe { bytes_in_pipe(pipe.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// When to ask whether a program waits, and whether the user has been told already.
#[derive(Debug, Default)]
pub struct Awaited {
    /// Milliseconds beyond the shortest pause.
    slack: u16,
    /// How often the user had typed when told.
    told_at: Option<u64>,
}

impl Awaited {
    const SHORTEST: u16 = 20;
    const LONGEST: u16 = 400;

    /// Milliseconds until the next look. Programs that are silent for long are looked at less often.
    pub fn pause(&self) -> u16 {
        Self::SHORTEST + self.slack
    }

    /// Whether the program has begun to wait and the user is to be told, given whether it has just printed something.
    pub fn begins<S: std::ops::Deref<Target = Stdin>>(
        &mut self,
        has_printed: bool,
        stdin: impl FnOnce() -> S,
    ) -> bool {
        if has_printed {
            self.slack = 0;
            return false;
        }
        self.slack = (self.slack * 2 + Self::SHORTEST).min(Self::LONGEST);
        let stdin = stdin();
        if self.told_at == Some(stdin.typed) || !stdin.is_awaited() {
            return false;
        }
        self.told_at = Some(stdin.typed);
        self.slack = 0;
        true
    }
}
