//! `bai gateway` as operators run it: [`daemon`] is what the process does, [`cluster`] what it does with PostgreSQL, etcd
//! and Redis, [`faults`] what it does when something happens to one of them, [`commands`] the administrator's commands beside it, [`locks`] what
//! its reads wait for.

pub(crate) mod cluster;
mod commands;
mod daemon;
mod faults;
mod locks;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bai_testkit::services::end_processes_of;
use tempfile::TempDir;

use crate::server::bai;

/// How long any condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks: who only yields takes the time from what is waited for.
const POLL: Duration = Duration::from_millis(10);

/// A folder with a `manager.toml` for a small site, without services.
pub(crate) struct Place {
    folder: TempDir,
    port: u16,
    /// Where events are taken: loopback, if agents are there.
    pub(crate) event_host: String,
    event_port: u16,
    starts: AtomicU32,
}

impl Place {
    /// `manager` is put into the table of that name, `more` at the end of the file, in `[bai]`; `{folder}` in both is the
    /// place's folder.
    fn new(manager: &str, more: &str) -> Self {
        let place = Self::empty();
        let folder = place.folder.path().display().to_string();
        let [manager, more] = [manager, more].map(|text| text.replace("{folder}", &folder));
        let data = place.path("data");
        let data = data.display();
        let bai = format!(
            "database = 'sqlite://{data}/bai.db'\nconfig-store = 'embedded://{data}/config.db'\nbroker = 'memory:'\n\
             data-dir = '{data}'\n{more}"
        );
        place.write("[etcd]\nnamespace = 'local'\n", &manager, &bai);
        place
    }

    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What the tests' own clients need.
        _ = rustls::crypto::ring::default_provider().install_default();
        // Where a daemon that gives up root may look around.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, event_port] = ports.map(|port| port.local_addr().unwrap().port());
        Self {
            folder,
            port,
            event_host: "127.0.0.1".to_owned(),
            event_port,
            starts: AtomicU32::new(0),
        }
    }

    pub(crate) fn write(&self, services: &str, manager: &str, bai: &str) {
        let text = format!(
            "{services}[manager]\nservice-addr = '127.0.0.1:{}'\nevent-listen-addr = '{}:{}'\n{manager}\n\
             [bai]\n{bai}\n",
            self.port, self.event_host, self.event_port
        );
        fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("manager.toml")
    }

    /// A command of this site.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(bai());
        command
            .args(words)
            .arg("--config")
            .arg(self.config())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon, without waiting for it.
    fn spawn(&self, environment: &[(&str, &str)]) -> Daemon {
        // Of each its own: several may run on one place.
        let stderr = self.path(&format!("stderr-{}", self.starts.fetch_add(1, Ordering::Relaxed)));
        let log = fs::File::create(&stderr).unwrap();
        let child = self
            .command(&["gateway"])
            .envs(environment.iter().copied())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, stderr }
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) fn start(&self, environment: &[(&str, &str)]) -> Daemon {
        let mut daemon = self.spawn(environment);
        daemon.wait_for("the API", |_| self.connects());
        daemon
    }

    /// Where agents tell what happens.
    pub(crate) fn events(&self) -> String {
        format!("{}:{}", self.event_host, self.event_port)
    }

    fn connects(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        end_processes_of(self.folder.path());
    }
}

/// A running daemon, killed when the test ends.
pub(crate) struct Daemon {
    child: Child,
    stderr: PathBuf,
}

impl Daemon {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits for a condition while the daemon lives.
    pub(crate) fn wait_for(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_met(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {}", self.log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", self.log());
            std::thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.pid().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Stops it, and checks that it ends well.
    pub(crate) fn stop(self) {
        self.signal("-TERM");
        self.stop_after_signal();
    }

    /// Checks that it ends well, having been told to.
    fn stop_after_signal(mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
