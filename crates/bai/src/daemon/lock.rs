//! A directory that one process has at a time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How often a lock is tried that somebody has, and the pause between: a process that was killed leaves its lock to children
/// that have not become another program yet.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Takes the data directory for this process; when another one has it, `hint` says what to do. It is free again when the
/// file is dropped.
///
/// # Errors
/// When another process has it and keeps it for a second, or nothing can be written there.
pub fn lock(data_dir: &Path, hint: &'static str) -> Result<fs::File> {
    lock_with(data_dir, hint, || std::thread::sleep(PAUSE))
}

fn lock_with(data_dir: &Path, hint: &'static str, mut pause: impl FnMut()) -> Result<fs::File> {
    let path = data_dir.join("lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let mut tried = file.try_lock();
    for _ in 1..ATTEMPTS {
        if !matches!(tried, Err(fs::TryLockError::WouldBlock)) {
            break;
        }
        pause();
        tried = file.try_lock();
    }
    tried.with_context(|| format!("{}: {hint}", data_dir.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_being_given_up_is_waited_for_and_another_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = Some(lock(folder.path(), "stop it").expect("it is free"));
        let second = lock_with(folder.path(), "stop it", || {
            first.take();
        });
        let _second = second.expect("it was given up");
        let mut pauses = 0;
        let refused = lock_with(folder.path(), "stop it", || pauses += 1);
        assert!(format!("{:#}", refused.expect_err("somebody has it")).contains("stop it"));
        assert_eq!(pauses, ATTEMPTS - 1);
    }
}
