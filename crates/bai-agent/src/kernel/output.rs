//! Files that a run leaves in `.output` below the work folder (`agent-protocol.md` 6.6).
//!
//! Invariants: no link is followed; names that begin with a dot and files above 100 MiB are left out; a folder that is
//! deeper or fuller than the limits below is looked at in part.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use bai_proto::agent::GeneratedFile;
use nix::sys::stat::SFlag;

use super::beneath::{Folder, kind};

/// Below the work folder.
const FOLDER: &str = ".output";
const MAX_SIZE: i64 = 100 << 20;
const MAX_FILES: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Where there is no object storage, this stands for the address.
const URL: &str = "#dummy-upload";

/// Files by relative name, with the time of their last change (seconds, nanoseconds).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, (i64, i64)>);

impl Snapshot {
    /// Looks at `.output` below `work`. Blocking.
    pub fn take(work: &Path) -> Self {
        let mut files = BTreeMap::new();
        let output = Folder::open(work).and_then(|work| work.child(OsStr::new(FOLDER)));
        let mut queue: Vec<(Folder, String, usize)> = Vec::new();
        queue.extend(output.ok().map(|folder| (folder, String::new(), 0)));
        while let Some((folder, prefix, depth)) = queue.pop() {
            for name in folder.names().into_iter().flatten() {
                let relative = format!("{prefix}{}", name.to_string_lossy());
                let Ok(stat) = folder.stat(&name) else { continue };
                if name.as_encoded_bytes().starts_with(b".") || files.len() >= MAX_FILES {
                    continue;
                }
                match kind(&stat) {
                    SFlag::S_IFDIR if depth < MAX_DEPTH => {
                        queue.extend(
                            folder
                                .child(&name)
                                .ok()
                                .map(|child| (child, format!("{relative}/"), depth + 1)),
                        );
                    }
                    SFlag::S_IFREG if stat.st_size <= MAX_SIZE => {
                        files.insert(relative, (stat.st_mtime, stat.st_mtime_nsec));
                    }
                    _ => {}
                }
            }
        }
        Self(files)
    }

    /// What is new or newer in `after`.
    pub fn made_since(&self, after: &Self) -> Vec<GeneratedFile> {
        let is_newer =
            |(name, time): &(&String, &(i64, i64))| self.0.get(*name).is_none_or(|before| before < *time);
        let file = |(name, _): (&String, _)| GeneratedFile {
            name: name.clone(),
            url: URL.to_owned(),
        };
        after.0.iter().filter(is_newer).map(file).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn new_and_changed_files_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let output = dir.path().join(".output");
        assert_eq!(Snapshot::take(dir.path()), Snapshot::default());
        fs::create_dir_all(output.join("deep")).expect("made");
        fs::write(output.join("old"), "x").expect("written");
        fs::write(output.join("changed"), "x").expect("written");
        let before = Snapshot::take(dir.path());
        let modified = fs::metadata(output.join("changed"))
            .and_then(|meta| meta.modified())
            .expect("a time");
        let later = modified + std::time::Duration::from_secs(1);
        fs::File::options()
            .write(true)
            .open(output.join("changed"))
            .expect("opened")
            .set_modified(later)
            .expect("set");
        fs::write(output.join("deep/new"), "x").expect("written");
        fs::write(output.join(".hidden"), "x").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", output.join("link")).expect("linked");
        let made = before.made_since(&Snapshot::take(dir.path()));
        let names: Vec<&str> = made.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["changed", "deep/new"]);
        assert_eq!(made[0].url, "#dummy-upload");
    }

    #[test]
    fn an_output_folder_that_is_a_link_is_not_looked_into() {
        let dir = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/etc", dir.path().join(".output")).expect("linked");
        assert_eq!(Snapshot::take(dir.path()), Snapshot::default());
    }
}
