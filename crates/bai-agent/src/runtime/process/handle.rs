//! One process of the host, named so that the name can never mean another one.
//!
//! A container id is `<boot id>-<pid>-<start time>`: a pid is used again, but not within one tick of the clock of one
//! boot of one machine. All waiting and killing goes through a pidfd that was opened before the name was compared.
//!
//! Invariants: the only `unsafe` of the agent is here.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::unix::AsyncFd;

/// A living (or just ended) process that answers to a container id.
#[derive(Debug)]
pub struct Handle {
    pub pid: i32,
    fd: AsyncFd<OwnedFd>,
}

impl Handle {
    /// The process with this container id, living or ended but not reaped.
    pub fn open(container_id: &str) -> io::Result<Option<Self>> {
        let Some(pid) = pid_of(container_id) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        if name_and_state(pid).is_none_or(|(name, _)| name != container_id) {
            return Ok(None);
        }
        Self::watch(pid, fd).map(Some)
    }

    #[expect(unsafe_code, reason = "registering a descriptor with the reactor")]
    fn watch(pid: i32, fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what registers it, and neither closed nor replaced before that is dropped.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { pid, fd })
    }

    /// The process with this container id, if it has not ended.
    pub fn open_living(container_id: &str) -> io::Result<Option<Self>> {
        let Some(handle) = Self::open(container_id)? else {
            return Ok(None);
        };
        if name(handle.pid).is_some() {
            return Ok(Some(handle));
        }
        handle.reap().map(|_| None)
    }

    /// Waits for the end of a child of this process, whose pid is its own until it is reaped here.
    pub async fn reap_child(pid: i32) -> io::Result<Ending> {
        Self::watch(pid, pidfd_open(pid)?)?.ended().await
    }

    /// Resolves when the process has ended; reaps it where it is a child of this process.
    pub async fn ended(&self) -> io::Result<Ending> {
        let _ = self.fd.readable().await?;
        self.reap()
    }

    fn reap(&self) -> io::Result<Ending> {
        let id = Id::PIDFd(self.fd.get_ref().as_fd());
        match waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Ending::Exited(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Ending::Exited(128 + signal as i32)),
            // Somebody else's child, or reaped by another waiter.
            Ok(_) | Err(Errno::ECHILD) => Ok(Ending::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends SIGKILL. A process that has ended in between is success.
    #[expect(unsafe_code, reason = "pidfd_send_signal has no wrapper")]
    pub fn kill(&self) -> io::Result<()> {
        let (fd, none) = (self.fd.get_ref().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is borrowed for the call, and no signal information is passed.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
        match io::Error::last_os_error() {
            error if result == -1 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }
}

/// How a process has ended, as far as this process may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(i32),
    Unknown,
}

/// The container id of a process, if it has not ended.
pub fn name(pid: i32) -> Option<String> {
    name_and_state(pid)
        .filter(|(_, state)| !matches!(state, 'Z' | 'X'))
        .map(|(name, _)| name)
}

fn name_and_state(pid: i32) -> Option<(String, char)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()?
        .trim()
        .replace('-', "");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, start) = state_and_start(&stat)?;
    Some((format!("{boot}-{pid}-{start}"), state))
}

fn pid_of(container_id: &str) -> Option<i32> {
    container_id
        .split('-')
        .nth(1)?
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
}

/// The third and the 22nd field of `/proc/<pid>/stat`; the second may contain anything.
fn state_and_start(stat: &str) -> Option<(char, &str)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(18)?))
}

#[expect(unsafe_code, reason = "pidfd_open has no wrapper")]
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_cannot_forge_the_start_time() {
        let stat = "42 (evil) R 1 2) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1";
        assert_eq!(state_and_start(stat), Some(('S', "777")));
    }

    #[tokio::test]
    async fn a_name_with_another_start_time_is_nobody() {
        let me = std::process::id() as i32;
        let name = name(me).expect("this process has a name");
        assert!(name.len() <= 64);
        assert!(Handle::open(&name).expect("readable").is_some());
        assert!(Handle::open(&format!("{name}1")).expect("readable").is_none());
    }
}
