//! The host user that a kernel runs as, and the folders that must belong to it.
//!
//! As root every kernel gets a user of its own: kernels cannot touch each other's files, and the limits that the kernel
//! counts per user are limits per session. An ordinary user can only be itself.
//!
//! Invariants: never the machine's root; links are not followed when owners change.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::PathBuf;

/// The user and group for kernel number `index`.
pub fn of_kernel(base: u32, index: u32) -> (u32, u32) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if !uid.is_root() {
        return (uid.as_raw(), gid.as_raw());
    }
    let map = |path| fs::read_to_string(path).unwrap_or_default();
    (
        choose(&map("/proc/self/uid_map"), base, index),
        choose(&map("/proc/self/gid_map"), base, index),
    )
}

/// `base + index` where that id exists; else, as in a container with a user namespace, one from the end of the largest
/// range that does; else 0, which then is an ordinary user outside.
fn choose(map: &str, base: u32, index: u32) -> u32 {
    let wanted = base.saturating_add(index);
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
    });
    let ranges: Vec<(u32, u32)> = ranges.collect();
    if ranges.is_empty()
        || ranges
            .iter()
            .any(|(first, count)| wanted.checked_sub(*first).is_some_and(|at| at < *count))
    {
        return wanted;
    }
    let (first, count) = ranges
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .unwrap_or_default();
    // Not the first id of the range, which may be somebody's root.
    if count < 2 {
        first
    } else {
        first + count - 1 - index % (count - 1)
    }
}

/// Gives a folder and all in it to the user of a kernel, unless it has it already. Follows no link.
pub async fn give(folder: PathBuf, owner: (u32, u32)) -> io::Result<()> {
    tokio::task::spawn_blocking(move || own_now(folder, owner)).await?
}

fn own_now(folder: PathBuf, (uid, gid): (u32, u32)) -> io::Result<()> {
    let meta = fs::symlink_metadata(&folder)?;
    if (meta.uid(), meta.gid()) == (uid, gid) || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let mut queue = vec![folder.clone()];
    while let Some(path) = queue.pop() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            lchown(entry.path(), Some(uid), Some(gid))?;
            if entry.file_type()?.is_dir() {
                queue.push(entry.path());
            }
        }
    }
    // Last, so that an interrupted pass is repeated.
    lchown(&folder, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_get_users_that_exist() {
        assert_eq!(
            choose("         0          0 4294967295\n", 600_100_000, 7),
            600_100_007
        );
        assert_eq!(choose("0 100000 65536\n", 600_100_000, 7), 65528);
        assert_eq!(choose("0 1000 1\n1 100000 65536\n", 600_100_000, 0), 65536);
        assert_eq!(choose("0 1000 1\n", 600_100_000, 3), 0);
    }
}
