//! The few system calls that neither `std` nor `nix` wraps, each with a safe face.
//!
//! Invariants: every `unsafe` of the sandbox is in this file; every caller is single-threaded (the program has not
//! started a thread yet), which is what makes forking without `exec` sound.
//!
//! Not here: any decision. See the sibling modules.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::Pid;

/// Mount attributes of `mount_setattr(2)`, which `libc` does not name for every target.
pub const RDONLY: u64 = 0x1;
pub const NOSUID: u64 = 0x2;
pub const NODEV: u64 = 0x4;
pub const NOEXEC: u64 = 0x8;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_FROM_EMPTY: libc::c_uint = 0x4;
const MOVE_MOUNT_TO_EMPTY: libc::c_uint = 0x40;

/// Which side of a fork this is.
pub enum Side {
    Parent(Pid),
    Child,
}

/// Forks through the C library, so that its idea of the thread is right in the child.
#[expect(unsafe_code, reason = "fork")]
pub fn fork() -> io::Result<Side> {
    // SAFETY: the process has one thread, so the child owns a consistent copy of everything.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(Pid::from_raw(pid))),
    }
}

/// Forks a sibling: the child's parent is the parent of the caller.
#[expect(unsafe_code, reason = "clone with CLONE_PARENT")]
pub fn fork_sibling() -> io::Result<Side> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without a new stack and without CLONE_VM this is a fork; the process has one thread. The remaining
    // arguments are unused by these flags on every architecture.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(Pid::from_raw(pid as i32))),
    }
}

/// Ends the process at once, without running what the forked copy's original would run at its exit.
#[expect(unsafe_code, reason = "_exit")]
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
#[expect(unsafe_code, reason = "close_range")]
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: called before the program owns any descriptor beyond the standard ones.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) }).map(drop)
}

/// Forgets the environment that the process was started with.
#[expect(unsafe_code, reason = "clearenv")]
pub fn clear_environment() {
    // SAFETY: the process has one thread, nobody else reads the environment now.
    unsafe { libc::clearenv() };
}

/// A detached copy of the mounts at `path`, to be attached elsewhere, even in another mount namespace.
#[expect(unsafe_code, reason = "open_tree")]
pub fn open_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let recursive = if recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | recursive;
    // SAFETY: the path is a valid C string for the duration of the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Restricts the mount that `mount` refers to, and all below it when `recursive`.
#[expect(unsafe_code, reason = "mount_setattr")]
pub fn restrict_mount(mount: impl AsFd, attributes: u64, recursive: bool) -> io::Result<()> {
    let wanted = MountAttributes {
        set: attributes,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the structure has the layout and the size that the kernel is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Attaches a detached tree to the file or directory that `target` refers to.
#[expect(unsafe_code, reason = "move_mount")]
pub fn attach(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    // SAFETY: both paths are the empty string, both descriptors are borrowed for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_FROM_EMPTY | MOVE_MOUNT_TO_EMPTY,
        )
    })
    .map(drop)
}

/// Brings the loopback interface of this network namespace up.
#[expect(unsafe_code, reason = "an ioctl on a network interface")]
pub fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: all-zero is a valid interface request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is complete and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// Gives up every capability for good: bounding, ambient, inheritable, permitted and effective sets, and the ways in
/// which user 0 would get them again.
#[expect(unsafe_code, reason = "prctl and capset")]
pub fn drop_capabilities() -> io::Result<()> {
    const SECUREBITS: libc::c_ulong = 0b1110_1111;
    let last: u64 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(63);
    for capability in 0..=last {
        // SAFETY: these operations of prctl take plain numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(result) {
            // Beyond the last capability that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result.map(drop)?,
        }
    }
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0) })?;
    // Version 3 of the interface: a header of version and pid, and two rows of effective, permitted, inheritable.
    let header: [u32; 2] = [0x2008_0522, 0];
    let nothing = [0_u32; 6];
    // SAFETY: both arrays have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) }).map(drop)
}

/// The version of Landlock that the kernel offers.
#[expect(unsafe_code, reason = "landlock_create_ruleset")]
pub fn landlock_version() -> io::Result<i64> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: this form of the call takes no pointer.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    })
}

fn check<T: Into<i64>>(result: T) -> io::Result<i64> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
