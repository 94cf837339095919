//! Virtual environments for what tests run that is written in Python.
//!
//! Each gets a folder below `target/`, made once for each content of its requirements file.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::report::say;
use crate::{services, shell};

/// What is to be installed, and for which Python.
#[derive(Debug)]
pub struct Requirements {
    /// The requirements file, below the workspace.
    pub file: String,
    /// The environment's folder, below `target/`.
    pub folder: String,
    /// Acceptable minor versions of Python 3, best first.
    pub pythons: &'static [u32],
    /// The file names every package, and what the packages themselves ask for is not heard.
    pub are_complete: bool,
}

/// The Python that an environment was made with, and its folder. It is made when it is missing.
///
/// # Errors
/// When no such Python is there, or something cannot be installed.
pub fn environment(wanted: &Requirements) -> Result<(PathBuf, PathBuf)> {
    let mut pythons = pythons();
    if pythons.is_empty() && services::install_packages(&["python3", "python3-venv"]) {
        pythons = self::pythons();
    }
    let find = |minor: &&u32| pythons.iter().find(|(known, _)| known == *minor);
    let Some((_, python)) = wanted.pythons.iter().find_map(|minor| find(&minor)) else {
        let names: Vec<_> = wanted.pythons.iter().map(|minor| format!("3.{minor}")).collect();
        bail!(
            "no Python {} with venv and pip on this machine",
            names.join(" or ")
        );
    };
    let requirements = shell::root().join(&wanted.file);
    let text = fs::read(&requirements);
    let mut stamp = DefaultHasher::new();
    text.with_context(|| format!("{} is missing", requirements.display()))?
        .hash(&mut stamp);
    let stamp = format!("{:016x}", stamp.finish());
    let folder = shell::root().join("target").join(&wanted.folder);
    if fs::read_to_string(folder.join("stamp")).is_ok_and(|made_for| made_for == stamp) {
        return Ok((python.clone(), folder));
    }
    say(&format!("making a virtual environment for {}", wanted.folder));
    quiet(Command::new(python).args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut install = Command::new(folder.join("bin/python"));
    install.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]);
    if wanted.are_complete {
        install.arg("--no-deps");
    }
    quiet(install.arg("--requirement").arg(&requirements))?;
    fs::write(folder.join("stamp"), stamp)?;
    Ok((python.clone(), folder))
}

/// Every Python on this machine that can make virtual environments, with its minor version.
fn pythons() -> Vec<(u32, PathBuf)> {
    let mut candidates = vec![PathBuf::from("python3")];
    candidates.extend((6..=13).map(|minor| PathBuf::from(format!("python3.{minor}"))));
    let versions = shell::answer(Command::new("pyenv").arg("root")).map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    for root in versions.into_iter().chain(home) {
        if let Ok(entries) = fs::read_dir(root.join("versions")) {
            candidates.extend(entries.flatten().map(|entry| entry.path().join("bin/python3")));
        }
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for candidate in candidates {
        if let Some(minor) = minor_version(&candidate)
            && !found.iter().any(|(known, _)| *known == minor)
        {
            found.push((minor, candidate));
        }
    }
    found
}

fn minor_version(python: &Path) -> Option<u32> {
    let probe = "import ensurepip, sys, venv; print(sys.version_info[1])";
    shell::answer(Command::new(python).args(["-c", probe]))?
        .parse()
        .ok()
}

/// Runs without showing the output; its last line is the reason of a failure.
fn quiet(command: &mut Command) -> Result<()> {
    let shown = shell::describe(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {shown}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    bail!("`{shown}` failed: {}", last.unwrap_or("without a word"))
}
