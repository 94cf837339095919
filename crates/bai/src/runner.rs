//! The in-session program, embedded in this executable and put where sandboxes can run it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The static `bai-runner` executable.
pub const RUNNER: &[u8] = include_bytes!(env!("BAI_RUNNER_PATH"));

/// Writes the runner below `data_dir` unless it is there, and returns its path. The name carries the content's hash:
/// sessions of an older version keep theirs.
///
/// # Errors
/// When the directory cannot be written.
pub fn install(data_dir: &Path) -> io::Result<PathBuf> {
    let hash = hex::encode(Sha256::digest(RUNNER));
    let folder = data_dir.join("bin");
    let path = folder.join(format!("bai-runner-{}", &hash[..16]));
    if fs::metadata(&path).is_ok_and(|found| found.len() == RUNNER.len() as u64) {
        return Ok(path);
    }
    fs::create_dir_all(&folder)?;
    let temporary = folder.join(format!(".bai-runner-{}", std::process::id()));
    fs::write(&temporary, RUNNER)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}
