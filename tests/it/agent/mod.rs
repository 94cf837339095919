//! `bai agent` as operators run it: [`daemon`] with a manager that the tests play over ZeroMQ, [`original`] with the manager
//! of 19.06, [`site`] with `bai gateway`, containers and the published clients.

mod adopted;
pub(crate) mod daemon;
mod original;
mod site;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use bai_testkit::services::{end_processes_of, processes_of};
use tempfile::TempDir;

use crate::server::bai;

/// How long any condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with an `agent.toml`.
pub(crate) struct Place {
    folder: TempDir,
    /// Where it takes calls.
    host: String,
    port: u16,
    /// Where the container engine is, if sessions are containers.
    pub(crate) engine: Option<String>,
    /// The words of a command that becomes the agent in namespaces of its own, such as `nsenter`.
    pub(crate) enter: Vec<String>,
}

impl Place {
    /// `etcd` is `host:port`; `own` is put into `[bai]`.
    fn new(etcd: &str, namespace: &str, id: &str, own: &str) -> Self {
        Self::with_runtime(etcd, namespace, id, &format!("runtime = 'process'\n{own}"))
    }

    fn with_runtime(etcd: &str, namespace: &str, id: &str, own: &str) -> Self {
        Self::at("127.0.0.1", 31100..=31199, etcd, namespace, id, own)
    }

    /// On an address of this host, with these ports for sessions. `own` names the runtime too.
    pub(crate) fn at(
        host: &str,
        ports: RangeInclusive<u16>,
        etcd: &str,
        namespace: &str,
        id: &str,
        own: &str,
    ) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Self {
            folder: TempDir::with_prefix("bai-agent-").unwrap(),
            host: host.to_owned(),
            port: port.local_addr().unwrap().port(),
            engine: None,
            enter: Vec::new(),
        };
        let folder = place.folder.path().display();
        let text = format!(
            "[etcd]\nnamespace = '{namespace}'\naddr = '{etcd}'\n\
             [agent]\nid = '{id}'\nrpc-listen-addr = '{host}:{}'\n\
             [container]\nsandbox-type = 'docker'\nscratch-type = 'hostdir'\nscratch-root = '{folder}/scratch'\n\
             port-range = '{}-{}'\n\
             [resource]\nreserved-cpu = 0\nreserved-mem = '64m'\n\
             [bai]\ndata-dir = '{folder}/data'\n{own}\n",
            place.port,
            ports.start(),
            ports.end()
        );
        fs::write(place.path("agent.toml"), text).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("tcp://{}:{}", self.host, self.port)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bai("agent");
        command.args(arguments);
        command
    }

    fn watcher(&self) -> Command {
        self.bai("watcher")
    }

    fn bai(&self, role: &str) -> Command {
        let program = bai().display().to_string();
        let words: Vec<&String> = self.enter.iter().chain([&program]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.envs(self.engine.iter().map(|engine| ("DOCKER_HOST", engine)));
        command.arg(role).arg("--config").arg(self.path("agent.toml"));
        command
    }

    pub(crate) fn start(&self) -> Running {
        self.run(self.command(&[]))
    }

    fn run(&self, mut command: Command) -> Running {
        let log = self.path("log");
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        Running {
            child: command.stderr(file).spawn().unwrap(),
            log,
        }
    }

    /// Processes of this place that live, the agent's own too.
    pub(crate) fn processes(&self) -> Vec<String> {
        processes_of(self.folder.path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Sessions outlive their agent on purpose, so that a failed test could leave some.
        end_processes_of(self.folder.path());
    }
}

/// A running agent, killed when the test ends.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a condition while the agent lives.
    async fn until(&mut self, what: &str, mut is_met: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_met().await {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {}", self.log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the agent does not end: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            _ = writeln!(std::io::stderr(), "the agent's log:\n{}", self.log());
        }
    }
}
