//! A directory that one process has at a time.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Takes the data directory for this process; when another one has it, `hint` says what to do. It is free again when the
/// file is dropped.
///
/// # Errors
/// When another process has it, or nothing can be written there.
pub fn lock(data_dir: &Path, hint: &'static str) -> Result<fs::File> {
    let path = data_dir.join("lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock()
        .with_context(|| format!("{}: {hint}", data_dir.display()))?;
    Ok(file)
}
