//! The file that says which process the daemon is (`manager.pid-file`, `agent.pid-file`).
//!
//! Invariants: while its process lives, the file is locked, so that a process number that was given to somebody else
//! meanwhile is not mistaken for a daemon; what is not a regular file is written, but never locked or removed.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Bytes that are read of a file that may be anybody's.
const MAX_SIZE: u64 = 64;

/// A file with this process's number.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
    is_regular: bool,
}

impl PidFile {
    /// Writes the file of a daemon that is a `role`, `manager` or `agent`. What a process left that is no more is replaced.
    ///
    /// # Errors
    /// When another daemon lives, of ours or of 19.06, or the file cannot be written.
    pub fn write(path: &Path, role: &str) -> Result<Self> {
        let context = || format!("cannot write {} ({role}.pid-file)", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        let mut file = file.with_context(context)?;
        let is_regular = file.metadata().with_context(context)?.is_file();
        if is_regular {
            refuse_living(path, &mut file, role)?;
            file.set_len(0).with_context(context)?;
            file.rewind().with_context(context)?;
        }
        let number = format!("{}\n", std::process::id());
        file.write_all(number.as_bytes()).with_context(context)?;
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            is_regular,
        })
    }

    /// Removes the file. In a folder that only root may change it is emptied instead.
    pub fn remove(self) {
        if !self.is_regular {
            return;
        }
        let removed = fs::remove_file(&self.path).or_else(|_| self.file.set_len(0));
        if let Err(error) = removed {
            tracing::warn!(%error, path = %self.path.display(), "the PID file could not be removed");
        }
    }
}

fn refuse_living(path: &Path, file: &mut File, role: &str) -> Result<()> {
    let mut text = String::new();
    _ = file.take(MAX_SIZE).read_to_string(&mut text);
    let pid: Option<u32> = text.trim().parse().ok();
    let is_locked = match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    };
    if is_locked || pid.is_some_and(|pid| is_original(pid, role)) {
        let pid = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
        bail!(
            "{} is held by a running {role}, {pid}: stop it, or name another file with {role}.pid-file",
            path.display()
        );
    }
    Ok(())
}

/// Whether a process calls itself as 19.06's manager or agent does. They lock nothing.
fn is_original(pid: u32, role: &str) -> bool {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    title.starts_with(format!("backend.ai: {role}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_replaced_and_a_living_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager.pid");
        // A number that this system gives to nobody, and one that lives and is no manager.
        for left in [
            "4194305\n".to_owned(),
            format!("{}\n", std::process::id()),
            "nonsense".to_owned(),
        ] {
            fs::write(&path, left).expect("a file");
            let written = PidFile::write(&path, "manager").expect("a stale file is replaced");
            let text = fs::read_to_string(&path).expect("a file");
            assert_eq!(text, format!("{}\n", std::process::id()));
            let refused = PidFile::write(&path, "manager").expect_err("the file is held");
            let expected = format!(
                "{} is held by a running manager, process {}: stop it, or name another file with manager.pid-file",
                path.display(),
                std::process::id()
            );
            assert_eq!(refused.to_string(), expected);
            written.remove();
            assert!(!path.exists());
        }
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        PidFile::write(Path::new("/dev/null"), "agent")
            .expect("writable by everybody")
            .remove();
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn the_setting_is_named() {
        let error = PidFile::write(Path::new("/nowhere/manager.pid"), "manager").expect_err("no such folder");
        assert_eq!(
            error.to_string(),
            "cannot write /nowhere/manager.pid (manager.pid-file)"
        );
    }
}
