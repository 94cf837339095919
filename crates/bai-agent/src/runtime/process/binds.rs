//! Which folders of the host a language's interpreter needs beside `/usr`.
//!
//! An interpreter may live anywhere (a version manager below a home folder, a virtual environment, `/opt`). Its
//! installation prefix is mounted read-only at its own place; so is the prefix of each link on the way to it.
//!
//! Invariants: a prefix that holds more than an installation (a home folder, `/`, `/home`) is never mounted.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the system's programs are; always mounted.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"];
/// Longer chains of links are a mistake or a trap.
const MAX_LINKS: usize = 16;

/// The folders or files to mount read-only for the program at `runtime_path`.
pub fn of_runtime(runtime_path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut path = runtime_path.to_owned();
    for _ in 0..MAX_LINKS {
        if !path.is_absolute() {
            break;
        }
        let prefix = prefix(&path);
        let known = SYSTEM.iter().any(|system| path.starts_with(system))
            || found.iter().any(|known| prefix.starts_with(known));
        if !known && prefix.exists() {
            found.push(prefix);
        }
        let Ok(next) = fs::read_link(&path) else { break };
        let next = path.parent().unwrap_or(Path::new("/")).join(next);
        let (Some(folder), Some(name)) = (next.parent(), next.file_name()) else {
            break;
        };
        let Ok(folder) = fs::canonicalize(folder) else {
            break;
        };
        path = folder.join(name);
    }
    // A virtual environment names the installation that it is made from.
    let base = runtime_path
        .parent()
        .and_then(Path::parent)
        .map(|prefix| prefix.join("pyvenv.cfg"));
    let base = base.and_then(|file| fs::read_to_string(file).ok());
    let home = base
        .as_deref()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("home = ")));
    if let Some(home) = home.map(|home| Path::new(home).join("python3")) {
        found.extend(
            of_runtime(&home)
                .into_iter()
                .filter(|prefix| !found.contains(prefix))
                .collect::<Vec<_>>(),
        );
    }
    found
}

/// The installation prefix of a program: the parent of its `bin`, or the program alone where that would be too much.
fn prefix(program: &Path) -> PathBuf {
    let folder = program.parent().unwrap_or(program);
    let prefix = folder.parent().filter(|_| folder.ends_with("bin"));
    let narrow = |prefix: &&Path| fs::canonicalize(prefix).is_ok_and(|resolved| !is_too_much(&resolved));
    prefix.filter(narrow).unwrap_or(program).to_owned()
}

fn is_too_much(prefix: &Path) -> bool {
    let is_home = prefix.join(".ssh").exists()
        || prefix.join(".profile").exists()
        || prefix.join(".bashrc").exists()
        || std::env::var_os("HOME").is_some_and(|home| Path::new(&home).starts_with(prefix))
        || prefix.parent() == Some(Path::new("/home"));
    is_home || prefix.components().count() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_programs_need_nothing() {
        assert_eq!(of_runtime("/usr/bin/python3".as_ref()), Vec::<PathBuf>::new());
    }

    #[test]
    fn installations_elsewhere_are_mounted_and_homes_are_not() {
        let root = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(root.path()).expect("a path");
        let make = |path: &str| {
            fs::create_dir_all(root.join(path).parent().expect("a parent")).expect("directories");
            fs::write(root.join(path), "").expect("a file");
            root.join(path)
        };
        let python = make("py/3.12/bin/python3.12");
        assert_eq!(of_runtime(&python), [root.join("py/3.12")]);
        fs::create_dir_all(root.join("venv/bin")).expect("directories");
        std::os::unix::fs::symlink(&python, root.join("venv/bin/python")).expect("a link");
        assert_eq!(
            of_runtime(&root.join("venv/bin/python")),
            [root.join("venv"), root.join("py/3.12")]
        );
        make("alice/.profile");
        let tool = make("alice/bin/tool");
        assert_eq!(of_runtime(&tool), [tool]);
    }
}
