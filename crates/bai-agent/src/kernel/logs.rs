//! What a kernel's programs printed (`agent-protocol.md` 2.9): the file `run/console.log` of its scratch folder.
//!
//! Invariants: the agent writes it, from what the runner sends, where the session cannot touch it; it never holds more
//! than [`MAX_LOG`] bytes for longer than one append.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "run/console.log";
/// When the log grows beyond this many bytes, its older half is dropped.
const MAX_LOG: u64 = 1 << 20;

/// The log of one life of a kernel, appended to by its only reader.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Log {
    /// Opens or makes the log below `scratch`. A log that cannot be written is a warning, not a failure.
    pub fn open(scratch: &Path) -> Self {
        let path = scratch.join(FILE);
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((size, file)) => Self {
                path,
                file: Some(file),
                size,
            },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a kernel's output is not logged");
                Self {
                    path,
                    file: None,
                    size: 0,
                }
            }
        }
    }

    /// Appends a record's bytes. Cheap enough for the task that reads the connection: it goes to the page cache.
    pub fn append(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let written = file.write_all(bytes);
        self.size += bytes.len() as u64;
        let written = written.and_then(|()| if self.size > MAX_LOG { self.halve() } else { Ok(()) });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "a kernel's output is not logged any more");
            self.file = None;
        }
    }

    /// Keeps the newer half.
    fn halve(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let kept = tail(&mut File::open(&self.path)?, MAX_LOG / 2)?;
        file.set_len(0)?;
        file.write_all(&kept)?;
        self.size = kept.len() as u64;
        Ok(())
    }
}

/// The log below `scratch`; empty if there is none. Blocking.
///
/// # Errors
/// When the file is there but cannot be read.
pub(crate) fn read(scratch: &Path) -> io::Result<String> {
    match File::open(scratch.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        file => Ok(String::from_utf8_lossy(&tail(&mut file?, MAX_LOG)?).into_owned()),
    }
}

/// Removes the log below `scratch`: a new life begins with an empty one. Blocking.
///
/// # Errors
/// When it is there and stays.
pub(crate) fn remove(scratch: &Path) -> io::Result<()> {
    match fs::remove_file(scratch.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The last `length` bytes at most, not from the middle of a character on.
fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    let skipped = file.metadata()?.len().saturating_sub(length);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    if skipped > 0 {
        let is_continuation = |byte: &&u8| **byte & 0xC0 == 0x80;
        bytes.drain(..bytes.iter().take(3).take_while(is_continuation).count());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        let scratch = tempfile::tempdir().expect("a folder");
        fs::create_dir(scratch.path().join("run")).expect("made");
        scratch
    }

    #[test]
    fn the_older_half_goes_first_and_the_log_goes_on_after_a_crash() {
        let scratch = scratch();
        assert_eq!(read(scratch.path()).expect("no log yet"), "");
        let mut log = Log::open(scratch.path());
        log.append(b"old");
        for _ in 0..MAX_LOG / 3000 + 1 {
            log.append("\u{2603}".repeat(1000).as_bytes());
        }
        drop(log);
        Log::open(scratch.path()).append(b"new");
        let text = read(scratch.path()).expect("a log");
        assert!(
            text.starts_with('\u{2603}') && text.ends_with("\u{2603}new"),
            "{}",
            text.len()
        );
        assert!(
            !text.contains("old") && text.len() as u64 <= MAX_LOG,
            "{}",
            text.len()
        );
        remove(scratch.path()).expect("removed");
        remove(scratch.path()).expect("nothing to do");
        assert_eq!(read(scratch.path()).expect("none again"), "");
    }
}
