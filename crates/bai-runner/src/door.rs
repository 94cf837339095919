//! The sockets by which the agent reaches a session: one for runs, one for descriptors.
//!
//! Invariants: both lie in a folder that the session cannot reach, because whoever connects is the agent.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

use bai_proto::descriptor;

/// Both sockets.
#[derive(Debug)]
pub struct Door {
    /// Requests and records (`crate::session`).
    pub runs: UnixListener,
    /// See `crate::descriptors`.
    pub descriptors: UnixListener,
}

impl Door {
    /// Listens on `runs` and, beside it, on the other. What an earlier life has left there is replaced.
    ///
    /// # Errors
    /// When a socket cannot be made there.
    pub fn open(runs: &Path) -> io::Result<Self> {
        // First, so that it is there when the one is that everybody waits for.
        let descriptors = listen(&runs.with_file_name(descriptor::SOCKET))?;
        Ok(Self {
            runs: listen(runs)?,
            descriptors,
        })
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}
