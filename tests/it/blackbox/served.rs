//! A server and its clients, on both profiles (`crate::server`).

use std::fs;
use std::process::{Command, Output, Stdio};

use bai_testkit::profile::Profile;
use tempfile::TempDir;

use crate::server::{Home, Up, command, stdout};

/// Where `bai run` finds its sessions: by itself on the embedded profile, at a manager on the other.
enum Ground {
    Alone(TempDir),
    Site(Box<Up>),
}

impl Ground {
    fn new() -> Self {
        match Profile::chosen() {
            Profile::Embedded => Self::Alone(tempfile::tempdir().unwrap()),
            Profile::Cluster => Self::Site(Box::new(Up::start())),
        }
    }

    /// `bai run` with a session that ends with it.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut run = match self {
            Self::Alone(home) => command(home.path()),
            Self::Site(up) => command(up.home.path()),
        };
        run.arg("run");
        if let Self::Site(up) = self {
            run.arg("--rm").envs(up.settings.clone());
        }
        run.args(arguments);
        run
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

#[test]
fn query_mode_shows_values_errors_and_input() {
    let ground = Ground::new();
    assert_eq!(stdout(&ground.run(&["python", "-c", "x = 20\nx + 1"])), "21");
    let output = ground.run(&["python", "-c", "1/0"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("ZeroDivisionError: division by zero") && stderr.contains("<cell 1>"),
        "{stderr}"
    );
    let mut child = ground
        .command(&["python", "-c", "print('got', input('name? '))"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"me\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "name? got me\n");
}

#[test]
fn shells_keep_their_exit_codes_and_environment() {
    let ground = Ground::new();
    let output = ground.run(&["shell", "-e", "NAME=value", "-c", "echo $NAME; (exit 3)"]);
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"value\n".as_slice(), Some(3))
    );
}

#[test]
fn files_are_built_and_run() {
    let ground = Ground::new();
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_str().unwrap();
    let source = folder.path().join("main.c");
    fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 5; }\n",
    )
    .unwrap();
    let output = ground.run(&["c", source.to_str().unwrap(), "--basedir", base]);
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"built\n".as_slice(), Some(5)),
        "{output:?}"
    );
    let script = folder.path().join("hello.py");
    fs::write(&script, "import sys\nprint('hello')\nsys.exit(4)\n").unwrap();
    let output = ground.run(&[
        "python",
        script.to_str().unwrap(),
        "--basedir",
        base,
        "--exec",
        "python3 hello.py",
    ]);
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (b"hello\n".as_slice(), Some(4)),
        "{output:?}"
    );
}

#[test]
fn a_session_cannot_see_the_host() {
    let ground = Ground::new();
    let code = "import os; print(os.path.exists('/etc/shadow'), os.getuid() != 0, os.getcwd())";
    assert_eq!(
        stdout(&ground.run(&["python", "-c", code])),
        "False True /home/work\n"
    );
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
    let scratch = home.data_dir().join("scratch");
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0);
}

#[test]
fn a_run_ends_although_its_server_was_killed() {
    let mut up = Up::start();
    let mut client = command(up.home.path())
        .args(["run", "-q", "-t", "lasting", "python", "-c"])
        .arg("import os\nopen('begun', 'w').close()\nwhile not os.path.exists('gate'): pass\nopen('done', 'w').close()")
        .envs(up.settings.clone())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let scratch = up.home.data_dir().join("scratch");
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
    let second = up.home.server().output().unwrap();
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another server uses this directory"),
        "{second:?}"
    );
}

#[test]
fn strangers_are_refused_unless_told() {
    let home = Home::new();
    let (mut server, remedy) = match Profile::chosen() {
        Profile::Embedded => {
            let mut up = command(home.path());
            up.args(["up", "--listen", "0.0.0.0:0"]);
            (up, "--allow-process-runtime")
        }
        Profile::Cluster => {
            let mut gateway = home.server();
            gateway.env("BACKEND_SERVICE_IP", "0.0.0.0");
            (gateway, "allow-process-runtime = true in [bai]")
        }
    };
    let output = server.output().unwrap();
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(remedy),
        "{output:?}"
    );
}
