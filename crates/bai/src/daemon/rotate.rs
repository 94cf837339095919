//! A log file that is put aside when it is full: `name` becomes `name.1`, that `name.2`, and so on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// The file that is written, and how many full ones are kept.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    backups: u32,
    max_size: u64,
    file: File,
    size: u64,
}

impl Rotating {
    /// Goes on with the file at `path`, or makes it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: PathBuf, max_size: u64, backups: u32) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            backups,
            max_size,
            file,
            size,
        })
    }

    fn backup(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        PathBuf::from(path)
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.backups).rev() {
            match fs::rename(self.backup(number), self.backup(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.backup(1))?;
        self.file = File::options().create(true).append(true).open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

impl Write for Rotating {
    /// One record, which is never divided between files.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // A file that cannot be put aside grows: a record that is lost would be worse.
        if self.size > 0 && self.size.saturating_add(record.len() as u64) > self.max_size {
            _ = self.rotate();
        }
        self.file.write_all(record)?;
        self.size = self.size.saturating_add(record.len() as u64);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager.log");
        for (start, records) in [(0, 5), (5, 3)] {
            // A new process goes on where the last one ended.
            let mut log = Rotating::open(path.clone(), 10, 2).expect("a file");
            for record in start..start + records {
                log.write_all(format!("re {record}\n").as_bytes()).expect("room");
            }
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
        assert_eq!(read("manager.log"), "re 6\nre 7\n");
        assert_eq!(read("manager.log.1"), "re 4\nre 5\n");
        assert_eq!(read("manager.log.2"), "re 2\nre 3\n");
        assert!(!folder.path().join("manager.log.3").exists());
    }

    #[test]
    fn a_record_that_is_too_large_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager.log");
        let mut log = Rotating::open(path.clone(), 4, 1).expect("a file");
        for record in ["a\n", "much more\n", "b\n"] {
            log.write_all(record.as_bytes()).expect("room");
        }
        assert_eq!(fs::read_to_string(&path).expect("a file"), "b\n");
        let backup = fs::read_to_string(folder.path().join("manager.log.1"));
        assert_eq!(backup.expect("a file"), "much more\n");
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager.log");
        // Nothing can take this name.
        fs::create_dir_all(folder.path().join("manager.log.1/x")).expect("a folder");
        let mut log = Rotating::open(path.clone(), 4, 1).expect("a file");
        for record in ["one\n", "two\n"] {
            log.write_all(record.as_bytes()).expect("room");
        }
        assert_eq!(fs::read_to_string(&path).expect("a file"), "one\ntwo\n");
    }
}
