//! What of the host a session sees: the list of host paths, opened as detached mounts.
//!
//! Invariants: what is opened here is restricted here, before it is attached anywhere; a path that the specification
//! names must exist, a path of the system may be missing.
//!
//! Not here: where these mounts are attached, and what the private root holds beside them (`super::root`).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bai_proto::sandbox::SandboxSpec;

use super::control::{Fatal, OrFatal};
use super::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};

/// Something of the host that appears inside at `target` (an absolute path there).
pub struct Item {
    pub target: PathBuf,
    pub content: Content,
}

pub enum Content {
    Tree { mount: OwnedFd, is_dir: bool },
    Link(PathBuf),
}

const SYSTEM: u64 = RDONLY | NOSUID | NODEV;
const DATA: u64 = NOSUID | NODEV;
const DEVICE: u64 = NOSUID | NOEXEC;

/// Program files outside `/usr`, on systems that have not merged them into it.
const PROGRAM_DIRS: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"];

/// Configuration that programs and language runtimes read. Nothing that may hold a secret: no `shadow`, no `ssh`, no
/// package managers' settings (their addresses may carry credentials).
const CONFIGURATION: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "matplotlibrc",
    "mime.types",
    "OpenCL",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    // Without the site's files, which name its repositories.
    "R/ldpaths",
    "R/Makeconf",
    "R/Renviron",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

/// Families of such folders whose names carry a version.
const CONFIGURATION_PREFIXES: [&str; 7] = ["java", "jvm", "python", "ImageMagick", "lua", "php", "ruby"];

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Opens everything that the session will see, with the rights of the caller.
pub fn open_all(spec: &SandboxSpec) -> Result<Vec<Item>, Fatal> {
    let mut items = vec![open("/usr".as_ref(), "/usr".as_ref(), SYSTEM).or_fatal(needs("/usr"))?];
    items.extend(
        PROGRAM_DIRS
            .iter()
            .filter_map(|path| open_optional(Path::new(path), SYSTEM)),
    );
    let configuration = CONFIGURATION
        .iter()
        .map(PathBuf::from)
        .chain(versioned_configuration());
    items.extend(configuration.filter_map(|name| open_optional(&Path::new("/etc").join(name), SYSTEM)));
    items.extend(
        DEVICES
            .iter()
            .filter_map(|name| open_optional(&Path::new("/dev").join(name), DEVICE)),
    );
    let mut named = |source: &str, target: &str, attributes| -> Result<(), Fatal> {
        items.push(open(source.as_ref(), target.as_ref(), attributes).or_fatal(needs(source))?);
        Ok(())
    };
    named(&spec.work_dir, "/home/work", DATA)?;
    named(&spec.config_dir, "/home/config", SYSTEM | NOEXEC)?;
    for bind in &spec.binds {
        named(
            &bind.source,
            &bind.target,
            if bind.writable { DATA } else { SYSTEM },
        )?;
    }
    Ok(items)
}

fn needs(path: &str) -> String {
    format!("mount {path} (this needs Linux 5.12 or newer)")
}

fn versioned_configuration() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        CONFIGURATION_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
            .then(|| PathBuf::from(name))
    })
}

/// A path of the system at its own place, as the link that it is on the host where it is one.
fn open_optional(path: &Path, attributes: u64) -> Option<Item> {
    if let Ok(to) = fs::read_link(path) {
        return Some(Item {
            target: path.to_owned(),
            content: Content::Link(to),
        });
    }
    open(path, path, attributes).ok()
}

fn open(source: &Path, target: &Path, attributes: u64) -> io::Result<Item> {
    let is_dir = fs::metadata(source)?.is_dir();
    let mount = sys::open_tree(source, is_dir)?;
    sys::restrict_mount(&mount, attributes, is_dir)?;
    Ok(Item {
        target: target.to_owned(),
        content: Content::Tree { mount, is_dir },
    })
}
