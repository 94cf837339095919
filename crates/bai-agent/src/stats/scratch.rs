//! How large a kernel's folder is.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A folder with more entries than this is reported with the size of as many.
const MAX_FILES: usize = 20_000;
/// How long a size is good for: to walk through many files every two seconds would cost more than it tells.
const GOOD: Duration = Duration::from_secs(10);

/// A size, and when it was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FolderSize {
    pub bytes: u64,
    found: Option<Instant>,
}

impl FolderSize {
    pub fn new(bytes: u64, found: Instant) -> Self {
        let found = Some(found);
        Self { bytes, found }
    }

    pub fn is_good(&self, now: Instant) -> bool {
        self.found
            .is_some_and(|found| now.saturating_duration_since(found) < GOOD)
    }
}

/// Bytes of the files below a folder. Blocking.
pub(super) fn measure(folder: &Path) -> u64 {
    let mut total = 0;
    let mut left = MAX_FILES;
    let mut queue = vec![folder.to_owned()];
    while let Some(folder) = queue.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(left) {
            left = left.saturating_sub(1);
            // Does not follow links.
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.len();
            if meta.is_dir() {
                queue.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_links_lead_to_does_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = measure(folder.path());
        fs::create_dir(folder.path().join("inner")).expect("made");
        let with_folder = measure(folder.path());
        fs::write(folder.path().join("inner/file"), [0; 5000]).expect("written");
        assert_eq!(measure(folder.path()), with_folder + 5000);
        std::os::unix::fs::symlink("/", folder.path().join("all")).expect("linked");
        assert!(measure(folder.path()) < with_folder + 5100);
        assert_eq!(empty, 0);
    }

    #[test]
    fn a_size_is_good_for_a_while() {
        let now = Instant::now();
        assert!(!FolderSize::default().is_good(now));
        assert!(FolderSize::new(1, now).is_good(now + Duration::from_secs(9)));
        assert!(!FolderSize::new(1, now).is_good(now + GOOD));
    }
}
