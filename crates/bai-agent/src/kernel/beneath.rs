//! Folders of a session, opened so that no link in them leads out.
//!
//! A session writes what it likes below its folders, also while the agent looks: every path is therefore resolved by the
//! operating system beneath an open folder (`openat2`), and every walk goes from open folder to open folder. Kernels
//! without `openat2` get a walk that follows no link at all.
//!
//! Invariants: nothing outside the folder is opened, whatever the session does meanwhile; nothing blocks on a pipe.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

/// Renames by the session can disturb a look-up; it is tried this often.
const ATTEMPTS: usize = 8;
/// Entries of one folder that are looked at.
const MAX_NAMES: usize = 10_000;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder of the agent's own, by a path that no session controls.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// The folder at `relative` (itself if empty); links are followed as long as they stay inside.
    pub fn folder(&self, relative: &Path) -> io::Result<Self> {
        self.resolve(relative, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .map(Self)
    }

    /// The file at `relative`, for reading; links are followed as long as they stay inside. Opens pipes and devices
    /// without waiting: the caller looks at what it got.
    pub fn file(&self, relative: &Path) -> io::Result<File> {
        self.resolve(relative, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .map(File::from)
    }

    /// The folder at `relative`, made if need be and then given to the owner of this folder.
    pub fn make(&self, relative: &Path) -> io::Result<Self> {
        let mut path = std::path::PathBuf::new();
        let mut folder = self.folder(&path)?;
        for name in relative.components() {
            path.push(name);
            let existing = match self.folder(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                existing => Some(existing?),
            };
            folder = match existing {
                Some(existing) => existing,
                None => {
                    match mkdirat(&folder.0, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    let made = folder.child(name.as_os_str())?;
                    self.give_to_owner(&made.0)?;
                    made
                }
            };
        }
        Ok(folder)
    }

    /// The folder `name` in this one, not through a link.
    pub fn child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The regular file `name` in this folder, not through a link; `None` if it is something else by now.
    pub fn child_file(&self, name: &OsStr) -> io::Result<Option<File>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// Names of what is in the folder, in order; of a very full folder only some.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        // The link of an open descriptor leads to what is open, not to a path.
        let entries = fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?;
        let mut names: Vec<OsString> = entries
            .flatten()
            .map(|entry| entry.file_name())
            .take(MAX_NAMES)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// About `name` in this folder; a link itself, not its target.
    pub fn stat(&self, name: &OsStr) -> io::Result<FileStat> {
        Ok(fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    pub fn own_stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.0)?)
    }

    pub fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        Ok(nix::fcntl::readlinkat(&self.0, name)?)
    }

    /// Puts a file with `data` at `name`, in one step, in place of whatever is there, and gives it to the owner of
    /// `root`. `unique` makes the name of the intermediate file.
    ///
    /// # Errors
    /// Also when `name` is a folder.
    pub fn write(&self, name: &OsStr, data: &[u8], root: &Self, unique: &str) -> io::Result<()> {
        use std::io::Write;
        let temporary = format!(".{unique}.upload");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(
            &self.0,
            temporary.as_str(),
            flags,
            Mode::from_bits_truncate(0o644),
        )?);
        let written = file
            .write_all(data)
            .and_then(|()| root.give_to_owner(file.as_fd()));
        let written =
            written.and_then(|()| Ok(nix::fcntl::renameat(&self.0, temporary.as_str(), &self.0, name)?));
        if written.is_err() {
            // What cannot be removed is the session's own rubbish.
            _ = nix::unistd::unlinkat(
                &self.0,
                temporary.as_str(),
                nix::unistd::UnlinkatFlags::NoRemoveDir,
            );
        }
        written
    }

    /// As root, gives what is open at `file` to the owner of this folder; otherwise it belongs to them already.
    fn give_to_owner(&self, file: impl AsFd) -> io::Result<()> {
        if nix::unistd::geteuid().is_root() {
            let owner = self.own_stat()?;
            fchown(
                file,
                Some(Uid::from_raw(owner.st_uid)),
                Some(Gid::from_raw(owner.st_gid)),
            )?;
        }
        Ok(())
    }

    fn resolve(&self, relative: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let path = if relative.as_os_str().is_empty() {
            Path::new(".")
        } else {
            relative
        };
        let flags = flags | OFlag::O_CLOEXEC;
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..ATTEMPTS {
            match openat2(&self.0, path, how) {
                Ok(file) => return Ok(file),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(Errno::ENOSYS | Errno::EPERM) => return self.walk(path, flags),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// As `resolve`, step by step and following no link.
    fn walk(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let step = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut folder = openat(&self.0, ".", step, Mode::empty())?;
        let mut components = path
            .components()
            .filter(|component| *component != Component::CurDir)
            .peekable();
        while let Some(component) = components.next() {
            let Component::Normal(name) = component else {
                return Err(Errno::EXDEV.into());
            };
            if components.peek().is_none() {
                return Ok(openat(&folder, name, flags | OFlag::O_NOFOLLOW, Mode::empty())?);
            }
            folder = openat(&folder, name, step, Mode::empty())?;
        }
        Ok(folder)
    }
}

/// What kind of file a mode says it is.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn trap() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("work/sub")).expect("made");
        fs::write(dir.path().join("secret"), "secret").expect("written");
        fs::write(dir.path().join("work/sub/file"), "mine").expect("written");
        symlink("/etc", dir.path().join("work/etc")).expect("linked");
        symlink("../secret", dir.path().join("work/up")).expect("linked");
        symlink("sub/file", dir.path().join("work/inside")).expect("linked");
        let folder = Folder::open(&dir.path().join("work")).expect("open");
        (dir, folder)
    }

    #[test]
    fn links_that_stay_inside_are_followed_and_others_are_not() {
        let (_dir, folder) = trap();
        assert!(folder.file(Path::new("inside")).is_ok());
        for path in ["etc/passwd", "up", "../secret", "sub/../../secret", "/etc/passwd"] {
            assert!(folder.file(Path::new(path)).is_err(), "{path}");
        }
        assert!(folder.folder(Path::new("etc")).is_err());
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let (_dir, folder) = trap();
        let read = |path: &str| folder.walk(Path::new(path), OFlag::O_RDONLY);
        assert!(read("sub/file").is_ok());
        assert!(read("./sub").is_ok());
        for path in ["inside", "etc/passwd", "up", "../secret", "/etc/passwd"] {
            assert!(read(path).is_err(), "{path}");
        }
    }

    #[test]
    fn folders_are_made_inside_only() {
        let (dir, folder) = trap();
        assert!(folder.make(Path::new("a/b/c")).is_ok());
        assert!(folder.make(Path::new("etc/a")).is_err());
        assert!(folder.make(Path::new("inside/a")).is_err());
        assert!(dir.path().join("work/a/b/c").is_dir());
    }

    #[test]
    fn a_written_file_replaces_a_link_instead_of_following_it() {
        let (dir, folder) = trap();
        folder
            .write(OsStr::new("up"), b"new", &folder, "x")
            .expect("written");
        assert_eq!(fs::read(dir.path().join("secret")).expect("there"), b"secret");
        assert_eq!(fs::read(dir.path().join("work/up")).expect("there"), b"new");
        assert!(folder.write(OsStr::new("sub"), b"new", &folder, "x").is_err());
        assert_eq!(folder.names().expect("readable").len(), 4);
    }
}
