//! Real servers for tests, started from local binaries on private ports and folders.
//!
//! Invariants: a server listens on loopback or on a unix socket only, runs as somebody unprivileged where it must, and
//! ends with the process that started it, however that ends: each one is the child of a [`Guardian`].
//!
//! A server whose binaries are missing is a [`Missing`]; the test prints `SKIPPED: <what>, because <why>` and ends.

pub mod docker;
pub mod etcd;
mod guardian;
pub mod original;
pub mod postgres;
pub mod proxy;
pub mod redis;
#[cfg(feature = "registry")]
pub mod registry;
pub mod rootfs;
mod server;
#[cfg(feature = "api")]
pub mod site;
pub mod tls;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use docker::Docker;
pub use etcd::Etcd;
pub use guardian::Guardian;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use redis::Redis;
#[cfg(feature = "api")]
pub use site::Site;
pub use tls::Certificates;

/// Why a server cannot be started on this machine.
#[derive(Clone, Debug)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a server can be given a small disk of its own.
///
/// # Errors
/// [`Missing`] where nothing may be mounted.
pub(crate) fn may_mount() -> Result<(), Missing> {
    let mounts = ["--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"];
    let mounted = std::process::Command::new("unshare").args(mounts).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(Missing("mounting a small disk takes root".to_owned()))
}

/// The executable of this name on `PATH` or below one of `also`.
///
/// # Errors
/// [`Missing`], naming it.
pub(crate) fn find_program(name: &str, also: &[PathBuf]) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    also.iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| Missing(format!("{name} is not installed")))
}

/// A port on loopback that nobody listens on at the moment.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()?
        .port())
}

/// Ends every process whose command line names the folder: sessions, which outlive their server on purpose, so that a test
/// that failed could leave some.
pub fn end_processes_of(folder: &Path) {
    for (id, _) in numbered_processes_of(folder).into_iter().flatten() {
        // It may have ended meanwhile.
        _ = Command::new("kill")
            .arg("-9")
            .arg(id)
            .stderr(Stdio::null())
            .status();
    }
}

/// The command lines of all processes whose command line names the folder.
///
/// # Panics
/// Where there is no `/proc`: nobody is to believe that nothing runs.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let processes = numbered_processes_of(folder).expect("/proc");
    processes.map(|(_, line)| line).collect()
}

fn numbered_processes_of(folder: &Path) -> std::io::Result<impl Iterator<Item = (OsString, String)>> {
    let folder = folder.display().to_string();
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries.filter_map(move |entry| {
        let entry = entry.ok()?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        line.contains(&folder).then(|| (entry.file_name(), line))
    }))
}

/// The last lines of a log, for the message of a test that fails.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
