//! Ring 6: the executable as users start it, with real sandboxes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::server::{self, Up, command, processes_of, stdout};

fn run(home: &TempDir, arguments: &[&str]) -> Output {
    command(home).arg("run").args(arguments).output().unwrap()
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

#[test]
fn an_ordinary_user_has_the_same() {
    const NOBODY: u32 = 65_534;
    let home = tempfile::tempdir().unwrap();
    if fs::metadata(home.path()).unwrap().uid() != 0 {
        println!("SKIPPED: changing to an ordinary user, because this is one already");
        return;
    }
    // Where everybody may read it, unlike the build's folder perhaps.
    let program = home.path().join("bai");
    fs::copy(server::bai(), &program).unwrap();
    for path in [home.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let output = Command::new(&program)
        .args(["run", "python", "-c", "import os; print(os.getuid(), 6*7)"])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("TMPDIR", home.path())
        .current_dir(home.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"1000 42\n", "{output:?}");
    let left: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["bai"]);
    assert!(processes_of(home.path()).is_empty());
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
