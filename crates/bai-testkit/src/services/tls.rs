//! Certificates for servers on loopback, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{Missing, find_program};

/// An authority, and a server's certificate from it for 127.0.0.1. Valid for two days; removed when dropped.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them.
    ///
    /// # Errors
    /// [`Missing`] without `openssl`.
    ///
    /// # Panics
    /// When it fails.
    pub fn make() -> Result<Self, Missing> {
        find_program("openssl", &[])?;
        let folder = TempDir::with_prefix("bai-tls-").expect("a folder");
        for words in [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority \
             -keyout authority.key -out authority.pem",
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server \
             -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.csr",
            "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -copy_extensions copy \
             -days 2 -out server.pem",
        ] {
            openssl(folder.path(), words).unwrap_or_else(|error| panic!("{error:#}"));
        }
        Ok(Self { folder })
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    /// The server's private key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }
}

fn openssl(folder: &Path, words: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(words.split_whitespace())
        .current_dir(folder)
        .output()?;
    ensure!(
        output.status.success(),
        "openssl {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
