//! What a kernel's programs printed, bounded: the file that `get_logs` gives out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// When the log grows beyond this many bytes, its older half is dropped.
const MAX_LOG: usize = 1 << 20;

/// The log of one kernel, appended to by its only reader.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: usize,
}

impl Log {
    /// Opens or makes the log of a kernel's scratch folder. A log that cannot be written is a warning, not a failure.
    pub fn open(scratch: &Path) -> Self {
        let path = path(scratch);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = &file {
            tracing::warn!(path = %path.display(), %error, "a kernel's output is not logged");
        }
        let size = file
            .as_ref()
            .ok()
            .and_then(|file| file.metadata().ok())
            .map_or(0, |found| found.len() as usize);
        Self {
            path,
            file: file.ok(),
            size,
        }
    }

    pub fn append(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if file.write_all(bytes).is_ok() {
            self.size += bytes.len();
        }
        if self.size > MAX_LOG && self.halve().is_err() {
            self.file = None;
        }
    }

    /// Keeps the newer half.
    fn halve(&mut self) -> io::Result<()> {
        let whole = fs::read(&self.path)?;
        let kept = &whole[whole.len().saturating_sub(MAX_LOG / 2)..];
        if let Some(file) = &mut self.file {
            file.set_len(0)?;
            file.write_all(kept)?;
            self.size = kept.len();
        }
        Ok(())
    }
}

fn path(scratch: &Path) -> PathBuf {
    scratch.join("run/console.log")
}

/// The whole log as text.
///
/// # Errors
/// When there is none.
pub fn read(scratch: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path(scratch))?
        .take(2 * MAX_LOG as u64)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_half_goes_first() {
        let scratch = tempfile::tempdir().expect("a folder");
        fs::create_dir(scratch.path().join("run")).expect("a folder");
        let mut log = Log::open(scratch.path());
        log.append(b"old");
        for _ in 0..MAX_LOG / 1000 + 1 {
            log.append(&[b'x'; 1000]);
        }
        log.append(b"new");
        let text = read(scratch.path()).expect("a log");
        assert!(
            text.ends_with("new") && !text.contains("old") && text.len() <= MAX_LOG,
            "{}",
            text.len()
        );
    }
}
