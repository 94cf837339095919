//! The session's terminal (`agent-protocol.md` 6.8): a login shell on a pseudo-terminal.
//!
//! The agent gets the controlling side and does all reading, typing and resizing. This side keeps it open, so that the
//! shell goes on while there is no agent, and starts the next shell when the agent asks after the end of one.
//!
//! Invariants: there is at most one shell; it is started when it is first asked for; it leads a session of its own with the
//! terminal, and has the environment, user and limits of every program here.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::lang::Runtime;

/// The size until somebody says another.
static SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 80,
    ws_xpixel: 0,
    ws_ypixel: 0,
};
/// In this order, unless the session's environment names a shell of its own.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// The terminal, before and after its first use.
#[derive(Debug)]
pub struct Terminal {
    runtime: Arc<Runtime>,
    shell: Option<Shell>,
}

/// A program on a pseudo-terminal.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    master: OwnedFd,
}

impl Terminal {
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime, shell: None }
    }

    /// The controlling side of the terminal of the shell that lives, which may just have been started.
    ///
    /// # Errors
    /// When there is none and none can be started.
    pub fn open(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.shell.as_mut().is_some_and(Shell::has_ended)
            && let Some(ended) = self.shell.take()
        {
            ended.bury();
        }
        let shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::spawn(&mut login_shell(&self.runtime))?,
        };
        Ok(self.shell.insert(shell).master.as_fd())
    }
}

/// The shell that people get, in its login form.
pub fn login_shell(runtime: &Runtime) -> Command {
    let named = runtime.environ.get("SHELL").filter(|shell| *shell != "/bin/sh");
    let shell = named
        .map(String::as_str)
        .into_iter()
        .chain(SHELLS)
        .find(|shell| Path::new(shell).exists());
    let shell = shell.unwrap_or("/bin/sh");
    let name = shell.rsplit('/').next().unwrap_or(shell);
    let mut command = Command::new(shell);
    command
        .arg0(format!("-{name}"))
        .env_clear()
        .envs(&runtime.environ)
        .env("SHELL", shell);
    command
}

impl Shell {
    /// Starts a program as the leader of a session with a new terminal.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the program cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        set_size(&master)?;
        let name = ptsname_r(&master)?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&name)?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        lead_session(command);
        let child = command.spawn()?;
        // The command keeps the other side open, and with it the terminal: its user sees no end then.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let master = OwnedFd::from(master);
        Ok(Self { child, master })
    }

    /// The controlling side.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Whether the program has ended, or has left its terminal, which comes to the same.
    fn has_ended(&mut self) -> bool {
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::empty())];
        // Without a wish, only a hang-up is told.
        let has_hung_up = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        has_hung_up || !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends what is left of it.
    pub fn bury(mut self) {
        drop(self.master);
        // It has ended, is about to, or has no terminal any more; nothing is to be learned from how.
        _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

nix::ioctl_write_ptr_bad!(
    /// The size of a terminal's window.
    set_window_size,
    libc::TIOCSWINSZ,
    Winsize
);

#[expect(unsafe_code, reason = "an ioctl that no library of ours wraps")]
fn set_size(master: &PtyMaster) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and the request reads one structure of the type that it is given.
    unsafe { set_window_size(master.as_raw_fd(), &raw const SIZE) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "what is to be done between fork and exec")]
fn lead_session(command: &mut Command) {
    let lead = || {
        nix::unistd::setsid()?;
        // SAFETY: the request takes an integer; descriptor 0 is the terminal by now.
        match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: both calls are async-signal-safe and nothing is allocated.
    unsafe { command.pre_exec(lead) };
}
