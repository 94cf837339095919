//! The session's first process: starts the runner proper, adopts and reaps orphans, and ends everything.
//!
//! Being pid 1 it cannot be killed from inside, and when it exits the kernel kills every process of the session.
//! It is a process of its own because the runner waits for its children by their ids: a runner that were pid 1 would
//! either leave orphans as zombies or steal its own children's exit codes.
//!
//! Invariants: ends exactly when the runner ends or, if asked to, when the agent's end of the control socket closes;
//! stopping or killing the runner from inside cannot keep the session alive beyond that.
//!
//! Not here: what the runner does (`crate::session`).

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::control::{Control, Fatal, OrFatal};
use super::sys::{self, Side};

/// Runs `session` in a child and returns its exit code. `leash` is the control socket that ends the session when it
/// closes.
pub fn supervise(leash: Option<&Control>, session: impl FnOnce() -> i32) -> Result<i32, Fatal> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().or_fatal("block SIGCHLD")?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_fatal("watch for SIGCHLD")?;
    let runner = match sys::fork().or_fatal("start the runner")? {
        Side::Parent(pid) => pid,
        Side::Child => {
            drop(signals);
            let _ = children.thread_unblock();
            sys::exit_now(session());
        }
    };
    drop(session);
    loop {
        let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        watched.extend(leash.map(|leash| PollFd::new(leash.as_fd(), PollFlags::POLLIN)));
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Fatal(format!("cannot wait for the session: {error}"))),
        }
        let leash_moved = watched.get(1).and_then(PollFd::any).unwrap_or(false);
        if leash_moved && leash.is_some_and(Control::is_closed) {
            return Ok(0);
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        if let Some(code) = reap(runner) {
            return Ok(code);
        }
    }
}

/// Reaps whatever has ended; the runner's exit code when it is among them.
fn reap(runner: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == runner => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == runner => return Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}
