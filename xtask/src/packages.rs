//! Programs from the system's packages, for tests that need them: installed when that is possible.

use std::process::Command;
use std::sync::OnceLock;

use crate::shell;

/// Whether `program` is in the search path, if need be after installing `package`.
pub fn have(program: &str, package: &str) -> bool {
    shell::find(program).is_some() || (install(&[package]) && shell::find(program).is_some())
}

/// Installs Debian packages; false when that cannot be.
pub fn install(packages: &[&str]) -> bool {
    static LISTS: OnceLock<bool> = OnceLock::new();
    if !shell::is_root() || shell::find("apt-get").is_none() {
        return false;
    }
    *LISTS.get_or_init(|| apt(&["update", "-qq"]))
        && apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
}

fn apt(words: &[&str]) -> bool {
    let mut apt = Command::new("apt-get");
    apt.args(words).env("DEBIAN_FRONTEND", "noninteractive");
    shell::run(&mut apt).unwrap_or(false)
}
