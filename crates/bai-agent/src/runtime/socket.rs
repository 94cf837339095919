//! The way to a runner's socket.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use tokio::net::UnixStream;

/// The socket's name in the kernel's `run` folder.
pub const SOCKET: &str = "runner.sock";

/// Connects to the runner's socket by way of its directory, whose path may be longer than a socket's address.
pub async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}
