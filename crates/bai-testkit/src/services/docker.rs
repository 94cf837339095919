//! A container engine of one's own: Debian's `dockerd` with its data, its containerd and its socket below a temporary
//! folder.
//!
//! It leaves the machine's network alone: no bridge, no rules, no forwarding. Containers have no network or the host's; to
//! publish ports it gets a network of its own ([`Docker::start_publishing`]).

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::{Guardian, Missing, find_program, may_mount, rootfs, tail};

/// How often the engine is asked whether it is ready, and how many times in all.
const POLL: Duration = Duration::from_millis(20);
const PATIENCE: u32 = 1500;

/// Becomes the engine, whose data are on a small disk that nobody else sees. `$0` is its size, `$1` the folder.
const ON_A_DISK: &str = r#"mount -t tmpfs -o "mode=0710,$0" tmpfs "$1" && shift && exec "$@""#;

/// A running engine. Dropping it ends it, with every container, and removes its folder.
#[derive(Debug)]
pub struct Docker {
    program: PathBuf,
    folder: PathBuf,
    /// Bytes of the disk for its data, where they have one of their own.
    disk: Option<u64>,
    running: Mutex<Option<Guardian>>,
    is_publishing: bool,
}

impl Docker {
    /// Starts an engine without images.
    ///
    /// # Errors
    /// [`Missing`] when it is not installed, this is not root, or the machine does not let it start.
    pub fn start() -> Result<Self, Missing> {
        Self::start_with(None, false)
    }

    /// The same, with so many bytes for images and containers. They are lost when it is stopped.
    ///
    /// # Errors
    /// As [`Docker::start`], or when this may not mount.
    pub fn start_on_disk(bytes: u64) -> Result<Self, Missing> {
        may_mount()?;
        Self::start_with(Some(bytes), false)
    }

    /// Starts an engine with a bridge, in a network namespace of its own, where containers' ports are published. What
    /// connects to them has to be there, too: [`Docker::inside`].
    ///
    /// # Errors
    /// As [`Docker::start`].
    pub fn start_publishing() -> Result<Self, Missing> {
        for program in ["ip", "unshare"] {
            find_program(program, &[PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])?;
        }
        Self::start_with(None, true)
    }

    fn start_with(disk: Option<u64>, is_publishing: bool) -> Result<Self, Missing> {
        let program = find_program("dockerd", &[PathBuf::from("/usr/sbin")])?;
        // Speaks the same API, for what tests prepare.
        find_program("docker", &[])?;
        if !is_root() {
            return Err(Missing("dockerd needs root".to_owned()));
        }
        let folder = TempDir::with_prefix("bai-docker-").map_err(|error| Missing(error.to_string()))?;
        let engine = Self {
            program,
            folder: folder.keep(),
            disk,
            running: Mutex::default(),
            is_publishing,
        };
        match engine.launch() {
            Ok(()) => Ok(engine),
            Err(error) => {
                let missing = Missing(format!("dockerd does not start here: {error:#}"));
                engine.clean_up();
                Err(missing)
            }
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    /// What `DOCKER_HOST` is for it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Leaves no room for its data until the file is removed, whose path is returned.
    ///
    /// # Panics
    /// When it has no disk of its own, is not running, or nothing can be written there at all.
    pub fn fill(&self) -> PathBuf {
        assert!(self.disk.is_some(), "only a disk of its own may be filled");
        let pid = self.pid().expect("the engine is running");
        // As the engine sees it.
        let data = self.folder.join("data").display().to_string();
        let path = PathBuf::from(format!("/proc/{pid}/root{data}/filler"));
        let mut filler = fs::File::create(&path).expect("room for a file");
        while filler.write_all(&[0; 4096]).is_ok() {}
        path
    }

    /// Ends the engine as the system does, and with it the containers (they are not kept over its restarts).
    pub fn stop(&self) {
        if let Some(guardian) = self.running().take() {
            guardian.stop();
            for _ in 0..PATIENCE {
                if self
                    .pid()
                    .is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists())
                {
                    break;
                }
                sleep(POLL);
            }
        }
    }

    /// Starts it again after [`Docker::stop`], with its images and what is left of its containers.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        self.launch()
            .unwrap_or_else(|error| panic!("dockerd does not start again: {error:#}"));
    }

    /// Stops the engine in its tracks: its socket stays, and nothing is answered. Containers go on.
    pub fn pause(&self) {
        self.signal("STOP").expect("pause the engine");
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.signal("CONT").expect("resume the engine");
    }

    /// Makes an image of a folder.
    ///
    /// # Errors
    /// When a folder cannot be read or the engine refuses it.
    pub fn import(&self, root: &Path, name: &str, changes: &[String]) -> Result<()> {
        let mut archive = Command::new("tar")
            .arg("-C")
            .arg(root)
            .args(["-cf", "-", "."])
            .stdout(Stdio::piped())
            .spawn()
            .context("start tar")?;
        let archived = archive.stdout.take().context("read from tar")?;
        let mut import = self.client();
        import.arg("import");
        for change in changes {
            import.args(["--change", change]);
        }
        let imported = import.args(["-", name]).stdin(archived).output()?;
        ensure!(archive.wait()?.success(), "tar failed");
        ensure!(
            imported.status.success(),
            "docker import: {}",
            String::from_utf8_lossy(&imported.stderr)
        );
        Ok(())
    }

    /// Makes an image with a shell, labelled for sessions of it.
    ///
    /// # Errors
    /// When this host lacks a program of it, or the engine refuses it.
    pub fn import_shell(&self, name: &str) -> Result<()> {
        let root = TempDir::new()?;
        rootfs::shell(root.path())?;
        let labels = [
            "LABEL ai.backend.kernelspec=1",
            "LABEL ai.backend.runtime-type=shell",
            "LABEL ai.backend.runtime-path=/bin/sh",
        ];
        self.import(root.path(), name, &labels.map(str::to_owned))
    }

    /// Runs `work` in the engine's network, with all that it starts.
    ///
    /// # Panics
    /// When `work` does, or the network is gone.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.pid().expect("the engine is running");
        let network = fs::File::open(format!("/proc/{pid}/ns/net")).expect("its network");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // Of this thread, and of the threads and processes that it starts.
                nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter the network");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What the `docker` command prints with these arguments.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        let output = self.client().args(arguments).output()?;
        ensure!(
            output.status.success(),
            "docker {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.folder.join("client"))
            .stdin(Stdio::null());
        command
    }

    fn launch(&self) -> Result<()> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Vec::new();
        if let Some(bytes) = self.disk {
            fs::create_dir_all(self.folder.join("data"))?;
            command.extend(["unshare", "--mount", "sh", "-c", ON_A_DISK].map(str::to_owned));
            command.extend([format!("size={bytes}"), path("data")]);
        }
        if self.is_publishing {
            let own_network = [
                "unshare",
                "--net",
                "sh",
                "-c",
                r#"ip link set lo up && exec "$@""#,
                "sh",
            ];
            command.extend(own_network.map(str::to_owned));
        }
        command.push(self.program.display().to_string());
        let bridge = match self.is_publishing {
            true => ("--bip", "10.213.255.1/24".to_owned()),
            false => ("--bridge", "none".to_owned()),
        };
        for (option, value) in [
            bridge,
            ("--data-root", path("data")),
            ("--exec-root", path("exec")),
            ("--pidfile", path("pid")),
            ("--host", self.host()),
            ("--config-file", path("none.json")),
            ("--iptables", "false".to_owned()),
            ("--ip6tables", "false".to_owned()),
            ("--ip-forward", "false".to_owned()),
            ("--ip-masq", "false".to_owned()),
            ("--shutdown-timeout", "3".to_owned()),
        ] {
            command.push(format!("{option}={value}"));
        }
        fs::write(self.folder.join("none.json"), "{}")?;
        let _ = fs::remove_file(self.socket());
        let log = self.log();
        let guardian = Guardian::start(&command, "TERM", &self.folder, &log)?;
        for _ in 0..PATIENCE {
            if self.is_ready() {
                *self.running() = Some(guardian);
                return Ok(());
            }
            if fs::read_to_string(&log).is_ok_and(|text| text.contains("failed to start daemon")) {
                break;
            }
            sleep(POLL);
        }
        let why = tail(&log);
        guardian.stop();
        bail!("{why}")
    }

    fn is_ready(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok() && self.docker(&["version"]).is_ok()
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the engine is not running")?;
        let kill = Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, name, &pid])
            .status()?;
        ensure!(kill.success(), "no process {pid}");
        Ok(())
    }

    fn pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("pid")).ok()?;
        Some(text.trim().to_owned()).filter(|pid| !pid.is_empty())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn clean_up(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn running(&self) -> MutexGuard<'_, Option<Guardian>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The guardian, which outlives this process, ends the engine and removes the folder.
        drop(self.running().take());
        self.clean_up();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
