//! The session's private root: a small read-only tmpfs with the host's system mounted read-only into it.
//!
//! Invariants: nothing of the host is reachable that `super::tree` does not name; targets are walked without following
//! links, so that links which a session left in its writable folders lead nowhere; the old root is gone afterwards.
//!
//! Not here: Landlock, which repeats these rules from the other side (`super::confine`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

use bai_proto::sandbox::{Network, SandboxSpec};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{chdir, pivot_root};

use super::control::{Fatal, Ledger, OrFatal};
use super::identity::WORK;
use super::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};
use super::tree::{Content, Item};

/// A directory that exists everywhere; the new root is built on top of it, in a namespace that nobody else sees.
const STAGE: &str = "/usr";

/// Builds the root, moves into it and lets the host's go.
pub fn build(
    spec: &SandboxSpec,
    items: Vec<Item>,
    network: Network,
    ledger: &mut Ledger,
) -> Result<(), Fatal> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .or_fatal("make the mounts private")?;
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    tmpfs(STAGE.as_ref(), "mode=755,size=16m").or_fatal("mount the private root")?;
    chdir(STAGE).or_fatal("enter the private root")?;
    // From here on relative paths are paths of the new root.
    write_base(spec, network, &resolv).or_fatal("furnish the private root")?;
    let size = spec
        .limits
        .tmp_size
        .map(|size| format!(",size={size}"))
        .unwrap_or_default();
    for path in ["tmp", "dev/shm"] {
        tmpfs(path.as_ref(), &format!("mode=1777{size}")).or_fatal(format!("mount /{path}"))?;
    }
    terminals(ledger);
    let root = open_dir(".").or_fatal("open the private root")?;
    for item in items {
        place(root.as_fd(), &item).or_fatal(format!("mount {}", item.target.display()))?;
    }
    processes(ledger)?;
    pivot_root(".", ".").or_fatal("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).or_fatal("let go of the host's root")?;
    chdir("/").or_fatal("enter the root")?;
    let root = open_dir("/").or_fatal("open the root")?;
    sys::restrict_mount(&root, RDONLY | NOSUID | NODEV, false).or_fatal("make the root read-only")?;
    ledger.enforced("private root");
    chdir("/home/work").or_fatal("enter /home/work")
}

fn tmpfs(target: &Path, options: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("bai"), target, Some("tmpfs"), flags, Some(options))
}

fn write_base(spec: &SandboxSpec, network: Network, resolv: &str) -> io::Result<()> {
    let dirs = [
        "dev/shm",
        "dev/pts",
        "etc",
        "home/work",
        "home/config",
        "proc",
        "run",
        "tmp",
        "usr",
        "var",
    ];
    for dir in dirs {
        fs::create_dir_all(dir)?;
    }
    for (link, to) in [
        ("dev/fd", "/proc/self/fd"),
        ("dev/stdin", "/proc/self/fd/0"),
        ("dev/stdout", "/proc/self/fd/1"),
        ("dev/stderr", "/proc/self/fd/2"),
        ("dev/ptmx", "pts/ptmx"),
        ("etc/mtab", "/proc/self/mounts"),
        ("var/run", "/run"),
        ("var/tmp", "/tmp"),
    ] {
        symlink(to, link)?;
    }
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let host = &spec.hostname;
    let resolv = match network {
        Network::Host => resolv,
        Network::Isolated => "# This session has a network of its own without a way out.\n",
    };
    for (file, text) in [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/:/usr/sbin/nologin\nwork:x:{WORK}:{WORK}:work:/home/work:{shell}\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        (
            "etc/group",
            format!("root:x:0:\nwork:x:{WORK}:\nnogroup:x:65534:\n"),
        ),
        ("etc/hostname", format!("{host}\n")),
        (
            "etc/hosts",
            format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {host}\n"),
        ),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n".to_owned(),
        ),
        ("etc/resolv.conf", resolv.to_owned()),
    ] {
        fs::write(file, text)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o444))?;
    }
    Ok(())
}

fn terminals(ledger: &mut Ledger) {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    ledger.note(
        "private terminals",
        mount(Some("bai"), "dev/pts", Some("devpts"), flags, options),
    );
}

/// The view of the processes. The kernel refuses a fresh one where it would show more of the system than the view
/// that this process has, as in a container that hides parts of its own.
fn processes(ledger: &mut Ledger) -> Result<(), Fatal> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let fresh = |options| mount(Some("bai"), "proc", Some("proc"), flags, options);
    let Err(error) = fresh(Some("hidepid=2")).or_else(|_| fresh(None::<&str>)) else {
        ledger.enforced("private /proc");
        return Ok(());
    };
    let host = sys::open_tree(Path::new("/proc"), true).or_fatal("open /proc")?;
    sys::restrict_mount(&host, NOSUID | NODEV | NOEXEC, true).or_fatal("restrict /proc")?;
    let target = open_dir("proc").or_fatal("open the place of /proc")?;
    sys::attach(host, target).or_fatal("mount the /proc of the machine")?;
    let reason = format!("{error}; the session sees the names of the processes that this agent sees");
    ledger.refused("private /proc", reason);
    Ok(())
}

fn open_dir(path: impl AsRef<Path>) -> nix::Result<OwnedFd> {
    nix::fcntl::open(
        path.as_ref(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

fn place(root: impl AsFd, item: &Item) -> io::Result<()> {
    let (parent, name) = make_parents(root, &item.target)?;
    let name = name.as_path();
    match &item.content {
        Content::Link(to) => Ok(nix::unistd::symlinkat(to.as_path(), &parent, name)?),
        Content::Tree { mount, is_dir: true } => sys::attach(mount, enter(&parent, name)?),
        Content::Tree { mount, is_dir: false } => {
            let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            if fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
                let create = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
                openat(&parent, name, create, Mode::from_bits_truncate(0o644))?;
            }
            let target = openat(&parent, name, flags | OFlag::O_PATH, Mode::empty())?;
            // The link itself, which would take a mount as well.
            if SFlag::from_bits_truncate(fstat(&target)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK {
                return Err(Errno::ELOOP.into());
            }
            sys::attach(mount, target)
        }
    }
}

/// Opens the folder in which `target` is, making what is missing, and following no link.
fn make_parents(root: impl AsFd, target: &Path) -> io::Result<(OwnedFd, std::path::PathBuf)> {
    let mut names = Vec::new();
    for component in target.components() {
        match component {
            Component::Normal(name) => names.push(Path::new(name)),
            Component::RootDir => {}
            _ => {
                return Err(io::Error::other(
                    "the path inside the session is not plain and absolute",
                ));
            }
        }
    }
    let last = names
        .pop()
        .ok_or_else(|| io::Error::other("a session's root cannot be replaced"))?;
    let mut folder = root.as_fd().try_clone_to_owned()?;
    for name in names {
        folder = enter(&folder, name)?;
    }
    Ok((folder, last.to_owned()))
}

fn enter(parent: impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&parent, name, flags, Mode::empty())?)
}
