//! A kernel's files, from the host's side: everything below its `work` folder and nothing else.
//!
//! Invariant: paths are walked with `openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)` or without following links at all,
//! so that no link that a session plants leads the agent, which may be root, out of the folder.
//!
//! All functions block; callers put them on the blocking pool.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use bai_proto::agent::{AgentError, FileListing};
use bytes::Bytes;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat};

/// Where the folder is inside the session.
const HOME: &str = "/home/work";
/// The largest archive that is given out (`agent-protocol.md` 2.7).
const MAX_ARCHIVE: usize = 1 << 20;
/// Entries of one listing.
const MAX_ENTRIES: usize = 10_000;

/// A path as a client gave it, relative to the folder; `None` when it leaves it.
fn relative(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let path = if path.is_absolute() {
        path.strip_prefix(HOME).ok()?
    } else {
        path
    };
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

fn open_beneath(root: &File, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .mode(if flags.contains(OFlag::O_CREAT) {
            Mode::from_bits_truncate(0o644)
        } else {
            Mode::empty()
        })
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    openat2(root.as_fd(), path, how)
}

fn agent_error(kind: &str, error: impl std::fmt::Display) -> AgentError {
    AgentError::exception(kind, error.to_string())
}

/// Writes a file, making its folders; both belong to the folder's owner.
///
/// # Errors
/// `ValueError` for a path that leaves the folder, `OSError` for what the disk says.
pub fn upload(work: &Path, path: &str, data: &Bytes) -> Result<(), AgentError> {
    let outside = || agent_error("ValueError", format!("the path leaves {HOME}: {path}"));
    let clean = relative(path)
        .filter(|clean| !clean.as_os_str().is_empty())
        .ok_or_else(outside)?;
    let failed = |error: Errno| match error {
        Errno::EXDEV | Errno::ELOOP => outside(),
        error => agent_error("OSError", format!("{path}: {}", error.desc())),
    };
    let root = File::open(work).map_err(|error| agent_error("OSError", error))?;
    let owner = root.metadata().map_err(|error| agent_error("OSError", error))?;
    let (uid, gid) = (Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid())));
    let mut folder = open_beneath(&root, Path::new(""), OFlag::O_DIRECTORY).map_err(failed)?;
    let mut walked = PathBuf::new();
    for component in clean.parent().into_iter().flat_map(Path::components) {
        match mkdirat(&folder, component.as_os_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                _ = fchownat(
                    &folder,
                    component.as_os_str(),
                    uid,
                    gid,
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )
            }
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        walked.push(component);
        folder = open_beneath(&root, &walked, OFlag::O_DIRECTORY).map_err(failed)?;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    let file = open_beneath(&root, &clean, flags).map_err(failed)?;
    _ = fchown(&file, uid, gid);
    File::from(file)
        .write_all(data)
        .map_err(|error| agent_error("OSError", error))
}

/// A tar archive of a file or a folder, named by its last part.
///
/// # Errors
/// `FileNotFoundError` for what is not there or outside, `AssertionError` for what is too large.
pub fn download(work: &Path, path: &str) -> Result<Bytes, AgentError> {
    let shown = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{HOME}/{path}")
    };
    let missing = || agent_error("FileNotFoundError", format!("Could not found the file: {shown}"));
    let clean = relative(path).ok_or_else(missing)?;
    let root = File::open(work).map_err(|error| agent_error("OSError", error))?;
    let opened = open_beneath(&root, &clean, OFlag::O_RDONLY).map_err(|_| missing())?;
    let name = clean
        .file_name()
        .map_or_else(|| PathBuf::from("work"), PathBuf::from);
    let mut archive = Archive {
        builder: tar::Builder::new(Vec::new()),
        size: 0,
    };
    archive.add(&name, opened)?;
    let bytes = archive
        .builder
        .into_inner()
        .map_err(|error| agent_error("OSError", error))?;
    if bytes.len() >= MAX_ARCHIVE {
        Err(too_large())
    } else {
        Ok(bytes.into())
    }
}

fn too_large() -> AgentError {
    agent_error("AssertionError", "too large file.")
}

struct Archive {
    builder: tar::Builder<Vec<u8>>,
    size: usize,
}

impl Archive {
    /// Adds an opened file or folder; links and devices within a folder are left out.
    fn add(&mut self, name: &Path, opened: OwnedFd) -> Result<(), AgentError> {
        let failed = |error: std::io::Error| agent_error("OSError", error);
        let found = fstat(&opened).map_err(|error| failed(error.into()))?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        let mut header = tar::Header::new_gnu();
        header.set_mode(found.st_mode & 0o7777);
        header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
        if kind == SFlag::S_IFDIR {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            self.builder
                .append_data(&mut header, name, std::io::empty())
                .map_err(failed)?;
            return self.add_entries(name, opened);
        }
        if kind != SFlag::S_IFREG {
            return Err(agent_error(
                "FileNotFoundError",
                format!("Could not found the file: {}", name.display()),
            ));
        }
        let mut data = Vec::new();
        let left = MAX_ARCHIVE.saturating_sub(self.size) as u64;
        File::from(opened)
            .take(left + 1)
            .read_to_end(&mut data)
            .map_err(failed)?;
        self.size += data.len();
        if self.size > MAX_ARCHIVE {
            return Err(too_large());
        }
        header.set_size(data.len() as u64);
        self.builder
            .append_data(&mut header, name, data.as_slice())
            .map_err(failed)
    }

    fn add_entries(&mut self, name: &Path, folder: OwnedFd) -> Result<(), AgentError> {
        let failed = |error: Errno| agent_error("OSError", error.desc());
        for entry in entries(&folder).map_err(failed)? {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let Ok(opened) = openat(&folder, entry.as_c_str(), flags, Mode::empty()) else {
                continue;
            };
            let entry_name = name.join(entry.to_string_lossy().as_ref());
            let kind = fstat(&opened).map(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT);
            if let Ok(SFlag::S_IFREG | SFlag::S_IFDIR) = kind {
                self.add(&entry_name, opened)?;
            }
        }
        Ok(())
    }
}

fn entries(folder: &OwnedFd) -> nix::Result<Vec<CString>> {
    let again = openat(
        folder,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(again)?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
        if names.len() == MAX_ENTRIES {
            break;
        }
    }
    names.sort();
    Ok(names)
}

/// A folder's entries in the form of `agent-protocol.md` 2.8. What is missing or outside looks the same.
pub fn list(work: &Path, path: &str) -> FileListing {
    let missing = || FileListing {
        files: String::new(),
        errors: "No such file or directory".to_owned(),
        abspath: None,
    };
    let Some(clean) = relative(path) else {
        return missing();
    };
    let Ok(root) = File::open(work) else {
        return missing();
    };
    let Ok(folder) = open_beneath(&root, &clean, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else {
        return missing();
    };
    let Ok(names) = entries(&folder) else {
        return missing();
    };
    let described: Vec<serde_json::Value> = names
        .iter()
        .filter_map(|name| {
            let found = fstatat(&folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
            Some(serde_json::json!({
                "mode": mode_text(&found),
                "size": found.st_size,
                "ctime": seconds(found.st_ctime, found.st_ctime_nsec),
                "mtime": seconds(found.st_mtime, found.st_mtime_nsec),
                "atime": seconds(found.st_atime, found.st_atime_nsec),
                "filename": name.to_string_lossy(),
            }))
        })
        .collect();
    let shown = Path::new(HOME).join(&clean);
    FileListing {
        files: serde_json::Value::Array(described).to_string(),
        errors: String::new(),
        abspath: Some(format!(
            "{}/\n",
            shown.display().to_string().trim_end_matches('/')
        )),
    }
}

fn seconds(whole: i64, nanoseconds: i64) -> f64 {
    whole as f64 + nanoseconds as f64 / 1e9
}

/// `drwxr-xr-x`.
fn mode_text(found: &FileStat) -> String {
    let kind = match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => 'd',
        SFlag::S_IFLNK => 'l',
        SFlag::S_IFIFO => 'p',
        SFlag::S_IFSOCK => 's',
        SFlag::S_IFCHR => 'c',
        SFlag::S_IFBLK => 'b',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = found.st_mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (found.st_mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn kind(error: AgentError) -> String {
        error.repr().split('(').next().unwrap_or_default().to_owned()
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let folder = tempfile::tempdir().expect("a folder");
        upload(folder.path(), "a/b.txt", &Bytes::from_static(b"hello")).expect("an upload");
        let archive = download(folder.path(), "/home/work/a/b.txt").expect("a download");
        let mut archive = tar::Archive::new(archive.as_ref());
        let mut entry = archive
            .entries()
            .expect("entries")
            .next()
            .expect("one")
            .expect("readable");
        assert_eq!(entry.path().expect("a path").to_str(), Some("b.txt"));
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        assert_eq!(text, "hello");
        let listing = list(folder.path(), "a");
        assert_eq!(listing.abspath.as_deref(), Some("/home/work/a/\n"));
        assert!(
            listing.files.contains("\"-rw-r--r--\"") && listing.files.contains("\"b.txt\""),
            "{}",
            listing.files
        );
    }

    #[test]
    fn nothing_outside_can_be_reached() {
        let folder = tempfile::tempdir().expect("a folder");
        symlink("/etc", folder.path().join("etc")).expect("a link");
        symlink("/etc/passwd", folder.path().join("passwd")).expect("a link");
        for path in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "etc/passwd",
            "passwd",
            "/home/workshop/x",
        ] {
            assert_eq!(
                kind(download(folder.path(), path).expect_err(path)),
                "FileNotFoundError",
                "{path}"
            );
            assert_eq!(
                kind(upload(folder.path(), path, &Bytes::from_static(b"x")).expect_err(path)),
                "ValueError",
                "{path}"
            );
            assert_eq!(
                list(folder.path(), path).errors,
                "No such file or directory",
                "{path}"
            );
        }
        assert_eq!(list(folder.path(), "etc").errors, "No such file or directory");
        // Within a folder, links are left out.
        let archive = download(folder.path(), ".").expect("the folder itself");
        let names = tar::Archive::new(archive.as_ref())
            .entries()
            .expect("entries")
            .count();
        assert_eq!(names, 1);
    }

    #[test]
    fn large_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("big"), vec![0; 2 << 20]).expect("a file");
        assert_eq!(
            download(folder.path(), "big").expect_err("too large").repr(),
            "AssertionError('too large file.')"
        );
    }
}
