//! A process that ends with ours.
//!
//! The server is the child of a small shell that waits for the end of its input. We hold the other end of that pipe, so
//! it ends when the [`Guardian`] is dropped, when the test panics, when a static is never dropped, and when the test
//! process is killed. The shell then stops the server, waits for it, and removes its folder.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `$1` is the signal, `$2` the folder to remove, the rest is the command. What has not ended a minute after the signal, as
/// sometimes the original's manager, is killed with its children.
const SCRIPT: &str = r#"
trap '' INT HUP
signal=$1; folder=$2; shift 2
"$@" </dev/null & server=$!
read -r word
kill -s "$signal" "$server" 2>/dev/null
(
    trap 'kill "$nap"; exit' TERM
    sleep 60 & nap=$!
    wait "$nap"
    kill -KILL "$server" $(cat "/proc/$server/task/$server/children")
) 2>/dev/null & patience=$!
wait "$server"
kill "$patience" 2>/dev/null
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// A server that is running, and is stopped when this is dropped.
#[derive(Debug)]
pub struct Guardian {
    shell: Child,
}

impl Guardian {
    /// Starts a command, its output going to `log`. At the end it gets `signal` (`TERM`, `QUIT`), and `folder` is removed.
    ///
    /// # Errors
    /// When the log cannot be written or there is no shell.
    pub fn start(command: &[impl AsRef<OsStr>], signal: &str, folder: &Path, log: &Path) -> io::Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "guardian", signal])
            .arg(folder)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { shell })
    }

    /// Stops the server and leaves its folder, so that it can be started again.
    pub fn stop(mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            // A shell that is gone has stopped it already.
            let _ = pipe.write_all(b"keep\n");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // A failure to wait means that it has ended.
        let _ = self.shell.wait();
    }
}
