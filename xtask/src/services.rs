//! The programs that the tests need beside ours, from the system's packages: servers that they start for themselves, and
//! languages of sessions.
//!
//! Only the programs are wanted: nothing that a package would start by default is started. What cannot be installed is
//! skipped by the tests that need it, each with its reason.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::report::say;
use crate::shell;

/// Programs, where they are beside the search path, and the packages that bring them.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("etcd", "", "etcd-server"),
    ("redis-server", "", "redis-server"),
    ("postgres", "/usr/lib/postgresql", "postgresql"),
    ("docker-registry", "", "docker-registry"),
    ("dockerd", "", "docker.io"),
    // Makes networks for agents.
    ("ip", "", "iproute2"),
    // What images without glibc consist of.
    ("busybox", "", "busybox-static"),
    ("musl-gcc", "", "musl-tools"),
    // Compiles libFuzzer.
    ("c++", "", "g++"),
    // Languages of sessions; R's with its Jupyter kernel. Go is not here, because it is eighty megabytes.
    ("Rscript", "", "r-cran-irkernel"),
    ("ruby", "", "ruby"),
    ("lua", "", "lua5.3"),
    ("php", "", "php-cli"),
];
/// Debian asks this program before it starts a service; 101 means that it must not.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the programs that are missing, where that is possible.
pub fn install_missing() {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, folder, _)| !is_installed(program, folder))
        .map(|(_, _, package)| *package)
        .collect();
    if !missing.is_empty() && !install_packages(&missing) {
        say(&format!("not installed: {}", missing.join(", ")));
    }
}

/// Those of these programs that are not on this machine.
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let is_missing = |wanted: &&str| {
        PROGRAMS
            .iter()
            .any(|(program, folder, _)| program == wanted && !is_installed(program, folder))
    };
    programs.iter().copied().filter(is_missing).collect()
}

/// Installs packages of the system without starting anything; false when that cannot be.
pub fn install_packages(packages: &[&str]) -> bool {
    if !shell::is_root() || shell::find("apt-get").is_none() {
        return false;
    }
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(words).env("DEBIAN_FRONTEND", "noninteractive");
        shell::run(&mut apt).unwrap_or(false)
    };
    let Ok(_quiet) = Quiet::begin() else { return false };
    let install = [
        "-o",
        "DPkg::Lock::Timeout=300",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ];
    apt(&["update", "-qq"]) && apt(&[&install[..], packages].concat())
}

/// In the search path, or in some version's `bin` below `folder`.
fn is_installed(program: &str, folder: &str) -> bool {
    let versions = fs::read_dir(folder).into_iter().flatten().flatten();
    shell::find(program).is_some()
        || versions
            .map(|version| version.path().join("bin").join(program))
            .any(|candidate| candidate.is_file())
}

/// While this lives, no package starts its services. A policy that was there before stays, and decides.
struct Quiet {
    ours: bool,
}

impl Quiet {
    fn begin() -> io::Result<Self> {
        let mut policy = fs::OpenOptions::new();
        let made = policy.write(true).create_new(true).mode(0o755).open(POLICY);
        match made {
            Ok(mut file) => {
                io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")?;
                Ok(Self { ours: true })
            }
            Err(_) if Path::new(POLICY).exists() => Ok(Self { ours: false }),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            say(&format!("remove {POLICY}: {error}"));
        }
    }
}
