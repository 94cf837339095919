//! Removes folders of kernels that are gone.
//!
//! Invariants: a folder leaves the scratch root in one step, before its content is removed, so that a removal that was
//! interrupted is no half a kernel; no link is followed.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::mount::{MntFlags, umount2};

/// Moves `folder` to `thrown`. Nothing to move is success. Blocking.
pub(crate) fn throw(folder: &Path, thrown: &Path) -> io::Result<()> {
    unmount(folder);
    match fs::rename(folder, thrown) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// An agent of 19.06 may have put a file system of memory there (`scratch-type = "memory"`); ours never does.
pub(crate) fn unmount(folder: &Path) {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    if device(folder) == folder.parent().and_then(device) {
        return;
    }
    if folder.is_dir()
        && let Err(error) = umount2(folder, MntFlags::MNT_DETACH)
    {
        tracing::error!(path = %folder.display(), %error, "a file system of a kernel cannot be unmounted");
    }
}

/// Removes whatever is in `trash`. Blocking.
pub(crate) fn empty(trash: &Path) {
    for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
        remove(&entry.path());
    }
}

/// Removes a folder that was thrown away. What cannot be removed is told and left for the next start. Blocking.
pub(crate) fn remove(thrown: &Path) {
    let removed = fs::remove_dir_all(thrown).or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            return Ok(());
        }
        // Programs may have taken away their own right to change their folders.
        open_up(thrown);
        fs::remove_dir_all(thrown)
    });
    if let Err(error) = removed {
        tracing::error!(path = %thrown.display(), %error, "what is left of a kernel cannot be removed");
    }
}

fn open_up(folder: &Path) {
    // Failures show at the removal.
    _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_folders_go_and_targets_of_links_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let (kernel, trash, other) = (
            dir.path().join("kernel"),
            dir.path().join("trash"),
            dir.path().join("other"),
        );
        for folder in [&kernel.join("locked/deep"), &trash, &other] {
            fs::create_dir_all(folder).expect("made");
        }
        fs::write(other.join("file"), "x").expect("written");
        std::os::unix::fs::symlink(&other, kernel.join("locked/deep/link")).expect("linked");
        fs::set_permissions(kernel.join("locked"), fs::Permissions::from_mode(0o000)).expect("locked");
        throw(&kernel, &trash.join("1")).expect("moved");
        throw(&kernel, &trash.join("1")).expect("nothing to do");
        empty(&trash);
        assert_eq!(fs::read_dir(&trash).expect("there").count(), 0);
        assert!(other.join("file").exists());
    }
}
