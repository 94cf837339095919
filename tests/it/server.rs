//! The executable as a process: how tests start it, `bai up` on a folder of its own, and what it leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The executable beside this test's, built by `cargo xtask test`.
pub fn bai() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("bai");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p bai` first",
        path.display()
    );
    path
}

/// A command with folders of its own and no endpoint.
pub fn command(home: &TempDir) -> Command {
    let mut command = Command::new(bai());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // The real home: tools such as rustup look for their settings there.
    command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
    command
        .env("XDG_DATA_HOME", home.path())
        .env("TMPDIR", home.path());
    command
}

/// What a command that went well printed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Processes whose command line names the folder.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let bytes = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    });
    lines.filter(|line| line.contains(folder)).collect()
}

/// A running `bai up`, killed when the test ends.
pub struct Up {
    child: Child,
    pub home: TempDir,
    pub settings: Vec<(String, String)>,
}

impl Up {
    /// On a new folder.
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    /// On a folder that has a history, with any free port.
    pub fn start_in(home: TempDir) -> Self {
        Self::start_with(home, &[], &[])
    }

    /// With more arguments and variables.
    pub fn start_with(home: TempDir, arguments: &[&str], environ: &[(&str, &str)]) -> Self {
        let data_dir = home.path().join("data");
        _ = fs::remove_file(data_dir.join("endpoint"));
        let child = command(&home)
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
            .args(arguments)
            .envs(environ.iter().copied())
            .stderr(fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut up = Self {
            child,
            home,
            settings: Vec::new(),
        };
        up.wait_for("the endpoint", |_| data_dir.join("endpoint").exists());
        let env = command(&up.home)
            .args(["env", "--user", "--data-dir"])
            .arg(&data_dir)
            .output()
            .unwrap();
        let settings = stdout(&env);
        up.settings = settings
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        assert_eq!(up.settings.len(), 4, "{settings}");
        up
    }

    /// Waits for a condition, for at most half a minute.
    pub fn wait_for(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_met(self) {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "the server ended: {}", log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", log());
            std::thread::yield_now();
        }
    }

    /// `bai run` with the settings of the server's ordinary user.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut run = command(&self.home);
        run.arg("run").args(arguments).envs(self.settings.clone());
        run.output().unwrap()
    }

    /// One of the settings, such as `BACKEND_ENDPOINT`.
    pub fn setting(&self, name: &str) -> &str {
        let found = self.settings.iter().find(|(known, _)| known == name);
        &found.unwrap().1
    }

    /// Sends the signal, waits for the end and returns the folder.
    pub fn stop(mut self, signal: &str) -> TempDir {
        let killed = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        assert!(signal == "-KILL" || status.success(), "{status}");
        std::mem::replace(&mut self.home, tempfile::tempdir().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        for line in processes_of(self.home.path()) {
            assert!(!line.contains("bai up"), "{line}");
        }
    }
}
