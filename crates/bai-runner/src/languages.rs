//! `bai-runner languages`: which languages the surroundings can run, one `type<TAB>path` a line, in the order of the table.
//!
//! Looks for the programs and runs none of them: an image that is only being looked at is not to be trusted.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::lang;

/// Where programs are when the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn run() -> ExitCode {
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    let lines: String = lang::programs()
        .filter_map(|(name, program)| Some(format!("{name}\t{}\n", find(program, &path)?.display())))
        .collect();
    match io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The executable of this name.
pub fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let is_executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(is_executable);
    }
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| Path::new(&folder).join(program))
        .find(is_executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_others_are_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = dir.path().join("python3");
        std::fs::write(&program, "").expect("written");
        assert_eq!(find("python3", dir.path().as_os_str()), None, "not executable");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
        assert_eq!(find("python3", dir.path().as_os_str()), Some(program.clone()));
        assert_eq!(
            find(&program.display().to_string(), OsStr::new("")),
            Some(program)
        );
        assert_eq!(find("/nonexistent/sh", dir.path().as_os_str()), None);
    }
}
