//! What `bai up` leaves in its data directory for `bai env` and for its owner: where the API listens, and the keypairs
//! made at the first start.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const CREDENTIALS: &str = "credentials.json";
const ENDPOINT: &str = "endpoint";

/// The accounts of the first start. Secrets: the file is readable by its owner only.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub superadmin: Account,
    pub user: Account,
}

/// One account with its keypair.
#[derive(Clone, Serialize, Deserialize)]
pub struct Account {
    pub email: String,
    pub password: String,
    pub access_key: String,
    pub secret_key: String,
}

impl Credentials {
    /// Reads the credentials of a data directory; `None` before its first start.
    ///
    /// # Errors
    /// When the file is there but cannot be understood.
    pub fn load(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(CREDENTIALS);
        match fs::read(&path) {
            Ok(text) => {
                let credentials = serde_json::from_slice(&text);
                credentials
                    .map(Some)
                    .with_context(|| format!("{} is damaged", path.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the credentials so that a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        write_private(data_dir, CREDENTIALS, &serde_json::to_vec_pretty(self)?)
    }
}

/// Notes where the API listens.
///
/// # Errors
/// When the directory cannot be written.
pub fn save_endpoint(data_dir: &Path, endpoint: &str) -> Result<()> {
    write_private(data_dir, ENDPOINT, endpoint.as_bytes())
}

/// Where the API of the last server on this directory listens or listened.
///
/// # Errors
/// When no server was started on it.
pub fn load_endpoint(data_dir: &Path) -> Result<String> {
    let text = fs::read_to_string(data_dir.join(ENDPOINT));
    let hint = "start a server with `bai up`, or name its directory with --data-dir";
    let text = text.with_context(|| format!("no server was started on {}; {hint}", data_dir.display()))?;
    Ok(text.trim().to_owned())
}

fn write_private(folder: &Path, name: &str, data: &[u8]) -> Result<()> {
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written: io::Result<()> = (|| {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))
    })();
    written.with_context(|| format!("cannot write {}", folder.join(name).display()))
}
