//! Files of a kernel, as its users see them below `/home/work` (`agent-protocol.md` 2.7, 2.8), handled on the host.
//!
//! Invariants: paths are resolved by [`super::beneath`], so that nothing outside the work folder and the mounted folders
//! is touched; what is written belongs to the session's user. Everything here blocks.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use bai_proto::agent::{AgentError, FileListing};
use bytes::Bytes;
use nix::sys::stat::{FileStat, SFlag};

use super::beneath::{Folder, kind};

/// Where users see their files.
const HOME: &str = "/home/work";
/// A download of this size or more is refused.
const MAX_DOWNLOAD: usize = 1 << 20;
const MAX_DEPTH: usize = 64;
/// The session's user inside (`bai_proto::sandbox`).
const USER: (u64, &str) = (1000, "work");

/// The folders of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// Host path of `/home/work`.
    pub work: PathBuf,
    /// Folders below it: name, host path, writable.
    pub mounts: Vec<(String, PathBuf, bool)>,
}

/// A path inside, with the folder that it is in.
#[derive(Debug, PartialEq)]
struct Place {
    root: PathBuf,
    relative: PathBuf,
    writable: bool,
    /// As the user would write it, absolute.
    shown: String,
}

impl Tree {
    /// Where `path` leads, without looking; `None` if it leaves `/home/work`.
    fn locate(&self, path: &str) -> Option<Place> {
        if path.contains('\0') {
            return None;
        }
        let path = Path::new(HOME).join(path);
        let mut parts: Vec<&OsStr> = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(part) => parts.push(part),
                Component::ParentDir => _ = parts.pop()?,
                Component::RootDir | Component::CurDir => {}
                Component::Prefix(_) => return None,
            }
        }
        let parts: Vec<&OsStr> = parts.strip_prefix(&["home".as_ref(), "work".as_ref()])?.to_vec();
        let shown = Path::new(HOME).join(parts.iter().collect::<PathBuf>());
        let shown = shown.to_str()?.trim_end_matches('/').to_owned();
        let mount = parts
            .first()
            .and_then(|first| self.mounts.iter().find(|(name, ..)| *first == OsStr::new(name)));
        Some(match mount {
            Some((_, host, writable)) => Place {
                root: host.clone(),
                relative: parts[1..].iter().collect(),
                writable: *writable,
                shown,
            },
            None => Place {
                root: self.work.clone(),
                relative: parts.iter().collect(),
                writable: true,
                shown,
            },
        })
    }

    /// Writes a file, replacing what is there. `unique` is a text that no other upload has.
    ///
    /// # Errors
    /// With the Python name of what went wrong.
    pub fn upload(&self, path: &str, data: &[u8], unique: &str) -> Result<(), AgentError> {
        let place = self.locate(path);
        let place = place.ok_or_else(|| refused(format!("the path leaves {HOME}: {path}")))?;
        let Some(name) = place.relative.file_name() else {
            return Err(AgentError::exception(
                "IsADirectoryError",
                format!("it is a folder: {}", place.shown),
            ));
        };
        if !place.writable {
            return Err(refused(format!(
                "the folder is mounted read-only: {}",
                place.shown
            )));
        }
        let parent = place.relative.parent().unwrap_or(Path::new(""));
        let write = || {
            let root = Folder::open(&place.root)?;
            root.make(parent)?.write(name, data, &root, unique)
        };
        write().map_err(|error| exception_of(&error, &place.shown))
    }

    /// An archive of a file or folder under its base name.
    ///
    /// # Errors
    /// `FileNotFoundError`, or `AssertionError` when it is too large.
    pub fn download(&self, path: &str) -> Result<Bytes, AgentError> {
        let shown = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{HOME}/{path}"),
        };
        let missing =
            || AgentError::exception("FileNotFoundError", format!("Could not found the file: {shown}"));
        let place = self.locate(path).ok_or_else(missing)?;
        let base = Path::new(&place.shown).file_name().unwrap_or(OsStr::new("work"));
        let mut archive = Archive {
            builder: tar::Builder::new(Bounded(Vec::new())),
        };
        let root = Folder::open(&place.root).map_err(|_| missing())?;
        let file = root.file(&place.relative).map_err(|_| missing())?;
        let stat = nix::sys::stat::fstat(&file).map_err(|_| missing())?;
        let packed = match kind(&stat) {
            SFlag::S_IFREG => archive.file(Path::new(base), &stat, file),
            SFlag::S_IFDIR => root
                .folder(&place.relative)
                .and_then(|folder| archive.folder(Path::new(base), &folder, 0)),
            _ => return Err(missing()),
        };
        packed
            .and_then(|()| archive.builder.into_inner())
            .map(|bytes| Bytes::from(bytes.0))
            .map_err(|error| match error.kind() {
                io::ErrorKind::FileTooLarge => AgentError::exception("AssertionError", "too large file."),
                _ => exception_of(&error, &place.shown),
            })
    }

    /// What is in a folder.
    pub fn list(&self, path: &str) -> FileListing {
        let missing = || FileListing {
            files: String::new(),
            errors: "No such file or directory".to_owned(),
            abspath: None,
        };
        let Some(place) = self.locate(path) else {
            return missing();
        };
        let abspath = Some(format!("{}/\n", place.shown));
        let folder = Folder::open(&place.root).and_then(|root| root.folder(&place.relative));
        let folder = match folder {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                let errors = format!(
                    "NotADirectoryError: [Errno 20] Not a directory: '{}'\n",
                    place.shown
                );
                return FileListing {
                    files: String::new(),
                    errors,
                    abspath,
                };
            }
            Err(_) => return missing(),
        };
        let is_home = place.root == self.work && place.relative.as_os_str().is_empty();
        let mut entries = Vec::new();
        let names = folder.names().into_iter().flatten();
        for name in names {
            let mount = self
                .mounts
                .iter()
                .find(|(mount, ..)| is_home && name == OsStr::new(mount));
            let stat = match mount {
                Some((_, host, _)) => Folder::open(host).and_then(|folder| folder.own_stat()),
                None => folder.stat(&name),
            };
            // What has vanished meanwhile is not listed.
            entries.extend(stat.ok().map(|stat| entry(&name.to_string_lossy(), &stat)));
        }
        FileListing {
            files: format!("[{}]\n", entries.join(", ")),
            errors: String::new(),
            abspath,
        }
    }
}

/// An entry in the form that Python's `json` gives it.
fn entry(name: &str, stat: &FileStat) -> String {
    let time = |seconds: i64, nanoseconds: i64| seconds as f64 + nanoseconds as f64 / 1e9;
    format!(
        r#"{{"mode": "{}", "size": {}, "ctime": {:?}, "mtime": {:?}, "atime": {:?}, "filename": {}}}"#,
        mode_text(stat.st_mode),
        stat.st_size,
        time(stat.st_ctime, stat.st_ctime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
        time(stat.st_atime, stat.st_atime_nsec),
        serde_json::Value::from(name),
    )
}

/// `drwxr-xr-x`.
fn mode_text(mode: u32) -> String {
    let kind = match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => 'd',
        SFlag::S_IFLNK => 'l',
        SFlag::S_IFCHR => 'c',
        SFlag::S_IFBLK => 'b',
        SFlag::S_IFIFO => 'p',
        SFlag::S_IFSOCK => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn refused(message: String) -> AgentError {
    AgentError::exception("PermissionError", message)
}

/// What Python would raise for `error`, about the path as the user sees it.
fn exception_of(error: &io::Error, shown: &str) -> AgentError {
    let (kind, reason) = match error.kind() {
        io::ErrorKind::NotFound => ("FileNotFoundError", "no such file or folder".to_owned()),
        io::ErrorKind::NotADirectory => (
            "NotADirectoryError",
            "a part of the path is not a folder".to_owned(),
        ),
        io::ErrorKind::IsADirectory => ("IsADirectoryError", "it is a folder".to_owned()),
        _ if matches!(error.raw_os_error(), Some(libc::EXDEV | libc::ELOOP)) => {
            ("PermissionError", format!("a link on the path leaves {HOME}"))
        }
        io::ErrorKind::PermissionDenied => ("PermissionError", "permission denied".to_owned()),
        _ => ("OSError", error.to_string()),
    };
    AgentError::exception(kind, format!("{reason}: {shown}"))
}

struct Archive {
    builder: tar::Builder<Bounded>,
}

impl Archive {
    fn file(&mut self, name: &Path, stat: &FileStat, mut file: std::fs::File) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size >= MAX_DOWNLOAD as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut data = Vec::new();
        // A file that grows meanwhile is cut, one that shrinks is shorter: the header says what is there.
        (&mut file).take(size).read_to_end(&mut data)?;
        let mut header = header(stat, tar::EntryType::Regular);
        header.set_size(data.len() as u64);
        self.builder.append_data(&mut header, name, data.as_slice())
    }

    fn folder(&mut self, name: &Path, folder: &Folder, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut header_of_folder = header(&folder.own_stat()?, tar::EntryType::Directory);
        self.builder
            .append_data(&mut header_of_folder, name, io::empty())?;
        for child in folder.names()? {
            let path = name.join(&child);
            let Ok(stat) = folder.stat(&child) else { continue };
            match kind(&stat) {
                SFlag::S_IFDIR => self.folder(&path, &folder.child(&child)?, depth + 1)?,
                SFlag::S_IFREG => {
                    if let Some(file) = folder.child_file(&child)? {
                        self.file(&path, &stat, file)?;
                    }
                }
                SFlag::S_IFLNK => {
                    let target = folder.read_link(&child)?;
                    if leads_down(Path::new(&target)) {
                        let mut header = header(&stat, tar::EntryType::Symlink);
                        self.builder.append_link(&mut header, &path, target)?;
                    }
                }
                // Pipes, sockets and devices have no content.
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a link cannot lead out of the archive, wherever it is unpacked. Others are left out: unpacking twice in one
/// place would write through them.
fn leads_down(target: &Path) -> bool {
    target
        .components()
        .all(|component| matches!(component, Component::Normal(_) | Component::CurDir))
}

fn header(stat: &FileStat, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(USER.0);
    header.set_gid(USER.0);
    // The name is short ASCII, which always fits.
    _ = header
        .set_username(USER.1)
        .and_then(|()| header.set_groupname(USER.1));
    header.set_size(0);
    header
}

/// Memory that refuses to become larger than a download may be.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() >= MAX_DOWNLOAD {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
