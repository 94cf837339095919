//! A folder for code that is run from a file.
//!
//! It lies in the temporary folder, where user code may delete it: [`Scratch::write`] makes it again.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The folder's name; dropping it removes nothing, because it ends with the session.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Default for Scratch {
    fn default() -> Self {
        Self(std::env::temp_dir().join(format!(".bai-{}", std::process::id())))
    }
}

impl Scratch {
    /// One for a purpose of its own.
    pub fn named(purpose: &str) -> Self {
        Self(std::env::temp_dir().join(format!(".bai-{}-{purpose}", std::process::id())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = self.0.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }
}
