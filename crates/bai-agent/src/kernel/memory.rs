//! Work folders in memory (`container.scratch-type = "memory"`, `agent-protocol.md` 7.1): a tmpfs of its own over a kernel's
//! `work`, which takes no more than its size.
//!
//! Only over `work`: what the agent itself writes about a kernel must find room however much the session has written.
//!
//! Invariants: whether something is mounted is seen at the folder, so that an agent that was killed at any instant leaves
//! nothing behind that the next one does not find; a tmpfs lives on without the agent.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount as mount_at, umount2};

/// What a size of 0 means, as in 19.06.
pub const DEFAULT_SIZE: u64 = 64 << 20;
/// Below the scratch root, to see whether this process may mount.
const TRIAL: &str = ".memory";

/// Mounts memory of at most `size` bytes over a folder, unless there is some. Blocking.
///
/// # Errors
/// When this process must not mount.
pub(crate) fn mount(folder: &Path, size: u64) -> io::Result<()> {
    if is_mounted(folder)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("mode=755,size={size}");
    Ok(mount_at(
        Some("bai"),
        folder,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )?)
}

/// Gives back the memory over a folder, if there is some. Blocking.
///
/// # Errors
/// When this process must not unmount.
pub(crate) fn unmount(folder: &Path) -> io::Result<()> {
    while is_mounted(folder)? {
        // Who still reads there, such as a download, does not keep the kernel from being forgotten.
        umount2(folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    Ok(())
}

/// Whether another file system begins at a folder; none does where there is no folder.
///
/// # Errors
/// When the folder cannot be looked at.
pub(crate) fn is_mounted(folder: &Path) -> io::Result<bool> {
    let device = |path: &Path| match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(own), Some(parent)) = (device(folder)?, folder.parent()) else {
        return Ok(false);
    };
    Ok(device(parent)?.is_some_and(|above| above != own))
}

/// Mounts and unmounts, to see that it can be done. Blocking.
///
/// # Errors
/// Why it cannot.
pub(crate) fn try_out(scratch_root: &Path) -> io::Result<()> {
    let folder = scratch_root.join(TRIAL);
    fs::create_dir_all(&folder)?;
    let tried = mount(&folder, 4096).and_then(|()| unmount(&folder));
    let removed = fs::remove_dir(&folder);
    tried.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_once_and_goes_with_all_that_is_in_it() {
        let root = tempfile::tempdir().expect("a folder");
        if let Err(error) = try_out(root.path()) {
            println!("SKIPPED: folders in memory, because mounting is refused here: {error}");
            return;
        }
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
        let folder = root.path().join("work");
        unmount(&folder).expect("nothing to do without a folder");
        fs::create_dir(&folder).expect("made");
        unmount(&folder).expect("nothing to do");
        mount(&folder, 1 << 20).expect("mounted");
        fs::write(folder.join("file"), [1; 1000]).expect("written");
        mount(&folder, 1 << 20).expect("it is there");
        assert!(folder.join("file").exists(), "nothing was mounted over it");
        let full = fs::write(folder.join("large"), vec![1; 2 << 20]).expect_err("too large");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        // Somebody who reads does not stand in the way.
        let held = fs::File::open(folder.join("file")).expect("open");
        unmount(&folder).expect("unmounted");
        assert!(!is_mounted(&folder).expect("seen") && !folder.join("file").exists());
        drop(held);
    }
}
