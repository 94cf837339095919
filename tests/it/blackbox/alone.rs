//! `bai run` with nothing configured, which is a server of its own for the time of one command: the embedded profile by
//! its nature.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use bai_testkit::services::processes_of;

use crate::server::{self, command};

#[test]
fn the_first_command_of_the_readme_prints_42_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path())
        .args(["run", "python", "-c", "print(6*7)"])
        .output()
        .unwrap();
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
