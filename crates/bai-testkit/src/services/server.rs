//! What the small servers have in common: one process with one port and one folder, which can be killed, paused and
//! started again.

use std::fmt;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::{Guardian, free_port, tail};

/// How often a server is asked whether it is ready, and how many times in all.
const POLL: Duration = Duration::from_millis(20);
const PATIENCE: u32 = 1500;

/// A process on a port of loopback, with its data below a folder. Dropping it kills it and removes the folder.
pub(super) struct Server {
    pub folder: PathBuf,
    pub port: u16,
    name: &'static str,
    command: Command,
    is_ready: fn(&Server) -> bool,
    running: Mutex<Option<Guardian>>,
}

/// The command line of a server with this folder and port.
type Command = Box<dyn Fn(&Server) -> Vec<String> + Send + Sync>;

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on port {}", self.name, self.port)
    }
}

impl Server {
    /// Starts a server on a free port. `command` is its command line; `is_ready` asks it.
    ///
    /// # Errors
    /// When it does not get ready, with the end of its log.
    pub fn start(
        name: &'static str,
        command: impl Fn(&Self) -> Vec<String> + Send + Sync + 'static,
        is_ready: fn(&Self) -> bool,
    ) -> Result<Self> {
        let folder = TempDir::with_prefix(format!("bai-{name}-"))?;
        let mut server = Self {
            folder: folder.keep(),
            port: 0,
            name,
            command: Box::new(command),
            is_ready,
            running: Mutex::new(None),
        };
        for _ in 0..5 {
            server.port = free_port()?;
            if server.launch().is_ok() {
                return Ok(server);
            }
        }
        bail!("{name} does not start: {}", tail(&server.log()))
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it with its port and data after [`Server::kill`]. When somebody took the port meanwhile, waits for them.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        let started = self.launch();
        started.unwrap_or_else(|error| panic!("{} does not start again: {error:#}", self.name));
    }

    fn launch(&self) -> Result<()> {
        let command = (self.command)(self);
        let pid_file = self.pid_file();
        let mut wrapped: Vec<String> = ["sh", "-c", r#"echo $$ >"$0"; exec "$@""#]
            .map(str::to_owned)
            .into();
        wrapped.push(pid_file.display().to_string());
        wrapped.extend(command);
        let _ = fs::remove_file(&pid_file);
        let guardian = Guardian::start(&wrapped, "KILL", &self.folder, &self.log())?;
        for _ in 0..PATIENCE {
            if (self.is_ready)(self) {
                *self.running() = Some(guardian);
                return Ok(());
            }
            if self.has_ended() {
                break;
            }
            sleep(POLL);
        }
        guardian.stop();
        bail!("not ready: {}", tail(&self.log()))
    }

    /// Whether somebody listens at its port.
    pub fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    /// Waits until the server says that it is ready.
    pub fn wait_until(&self, is_ready: fn(&Self) -> bool) -> Result<()> {
        for _ in 0..PATIENCE {
            if is_ready(self) {
                return Ok(());
            }
            sleep(POLL);
        }
        bail!("not ready: {}", tail(&self.log()))
    }

    /// Ends the process at once, as `kill -9` does. Its data stays.
    pub fn kill(&self) {
        if let Some(guardian) = self.running().take() {
            guardian.stop();
        }
    }

    /// Stops the process in its tracks: its connections stay, and nothing is answered.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn pause(&self) {
        self.signal("STOP").expect("pause the server");
        // On a busy machine its threads go on for a moment.
        let pid = self.pid().unwrap_or_default();
        for _ in 0..PATIENCE {
            if has_stopped(&pid) {
                return;
            }
            sleep(POLL);
        }
        panic!("process {pid} does not stop");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("CONT").expect("resume the server");
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the server is not running")?;
        let kill = std::process::Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, name, &pid])
            .status()?;
        ensure!(kill.success(), "no process {pid}");
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.pid()
            .is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}/fd")).exists() || is_zombie(&pid))
    }

    fn pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("pid")
    }

    /// What it prints.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Guardian>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ended, but its parent has not asked how.
fn is_zombie(pid: &str) -> bool {
    is_in_state(Path::new("/proc").join(pid), 'Z')
}

/// Whether each of its threads has been stopped by a signal.
fn has_stopped(pid: &str) -> bool {
    let tasks = fs::read_dir(Path::new("/proc").join(pid).join("task"));
    tasks.is_ok_and(|tasks| tasks.flatten().all(|task| is_in_state(task.path(), 'T')))
}

/// What the kernel says of a process or a thread.
fn is_in_state(process: PathBuf, state: char) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(state))
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running().take().is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
