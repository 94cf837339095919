//! Ring 6: the executable as users start it, with real sandboxes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The executable beside this test's, built by `cargo xtask test`.
fn bai() -> PathBuf {
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
fn command(home: &TempDir) -> Command {
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

fn run(home: &TempDir, arguments: &[&str]) -> Output {
    command(home).arg("run").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_first_command_of_the_readme_prints_42_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let output = run(&home, &["python", "-c", "print(6*7)"]);
    assert_eq!(output.stdout, b"42\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let left: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(processes_of(home.path()).is_empty());
}

/// Processes whose command line names the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let bytes = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    });
    lines.filter(|line| line.contains(folder)).collect()
}

#[test]
fn query_mode_shows_values_errors_and_input() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(stdout(&run(&home, &["python", "-c", "x = 20\nx + 1"])), "21");
    let output = run(&home, &["python", "-c", "1/0"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("ZeroDivisionError: division by zero") && stderr.contains("<cell 1>"),
        "{stderr}"
    );
    let mut child = command(&home)
        .args(["run", "python", "-c", "print('got', input('name? '))"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"me\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "name? got me\n");
}

#[test]
fn shells_keep_their_exit_codes_and_environment() {
    let home = tempfile::tempdir().unwrap();
    let output = run(
        &home,
        &["shell", "-e", "NAME=value", "-c", "echo $NAME; (exit 3)"],
    );
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"value\n".as_slice(), Some(3))
    );
}

#[test]
fn files_are_built_and_run() {
    let home = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_str().unwrap();
    let source = folder.path().join("main.c");
    fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 5; }\n",
    )
    .unwrap();
    let output = run(&home, &["c", source.to_str().unwrap(), "--basedir", base]);
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"built\n".as_slice(), Some(5)),
        "{output:?}"
    );
    let script = folder.path().join("hello.py");
    fs::write(&script, "import sys\nprint('hello')\nsys.exit(4)\n").unwrap();
    let output = run(
        &home,
        &[
            "python",
            script.to_str().unwrap(),
            "--basedir",
            base,
            "--exec",
            "python3 hello.py",
        ],
    );
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"hello\n".as_slice(), Some(4)),
        "{output:?}"
    );
}

#[test]
fn a_session_cannot_see_the_host() {
    let home = tempfile::tempdir().unwrap();
    let code = "import os; print(os.path.exists('/etc/shadow'), os.getuid() != 0, os.getcwd())";
    assert_eq!(
        stdout(&run(&home, &["python", "-c", code])),
        "False True /home/work\n"
    );
}

/// A running `bai up`, killed when the test ends.
struct Up {
    child: Child,
    home: TempDir,
    settings: Vec<(String, String)>,
}

impl Up {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(home: TempDir) -> Self {
        let data_dir = home.path().join("data");
        _ = fs::remove_file(data_dir.join("endpoint"));
        let child = command(&home)
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
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
    fn wait_for(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_met(self) {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "the server ended: {}", log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", log());
            std::thread::yield_now();
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        command(&self.home)
            .arg("run")
            .args(arguments)
            .envs(self.settings.clone())
            .output()
            .unwrap()
    }

    fn stop(mut self, signal: &str) -> TempDir {
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

#[test]
fn sessions_survive_their_server() {
    let up = Up::start();
    assert_eq!(
        stdout(&up.run(&["python", "-q", "-t", "lasting", "-c", "x = 41"])),
        ""
    );
    // Killed, not stopped: start-up is recovery.
    let up = Up::start_in(up.stop("-KILL"));
    assert_eq!(
        stdout(&up.run(&["python", "-q", "-t", "lasting", "-c", "print(x + 1)"])),
        "42\n"
    );
    let up = Up::start_in(up.stop("-TERM"));
    assert_eq!(
        stdout(&up.run(&["python", "-q", "-t", "lasting", "--rm", "-c", "print(x + 2)"])),
        "43\n"
    );
    let home = up.stop("-INT");
    let scratch = home.path().join("data/scratch");
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0);
}

#[test]
fn a_run_ends_although_its_server_was_killed() {
    let mut up = Up::start();
    let mut client = command(&up.home)
        .args(["run", "-q", "-t", "lasting", "python", "-c"])
        .arg("import os\nopen('begun', 'w').close()\nwhile not os.path.exists('gate'): pass\nopen('done', 'w').close()")
        .envs(up.settings.clone())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let scratch = up.home.path().join("data/scratch");
    let kernel = || {
        fs::read_dir(&scratch)
            .ok()?
            .next()?
            .ok()
            .map(|entry| entry.path())
    };
    up.wait_for("the run", |_| {
        kernel().is_some_and(|kernel| kernel.join("work/begun").exists())
    });
    let mut up = Up::start_in(up.stop("-KILL"));
    client.wait().unwrap();
    let kernel = kernel().unwrap();
    assert!(kernel.join("active-run").exists());
    fs::write(kernel.join("work/gate"), "").unwrap();
    up.wait_for("the run's end", |_| {
        kernel.join("work/done").exists() && !kernel.join("active-run").exists()
    });
    // The end of that run is not taken for the end of the next one.
    let next = up.run(&["python", "-q", "-t", "lasting", "--rm", "-c", "print('next')"]);
    assert_eq!(stdout(&next), "next\n");
}

#[test]
fn one_directory_has_one_server() {
    let up = Up::start();
    let second = command(&up.home)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(up.home.path().join("data"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another server uses this directory"),
        "{second:?}"
    );
}

#[test]
fn strangers_are_refused_unless_told() {
    let home = tempfile::tempdir().unwrap();
    let output = command(&home)
        .args(["up", "--listen", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--allow-process-runtime"),
        "{output:?}"
    );
}
