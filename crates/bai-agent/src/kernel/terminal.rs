//! The terminal of one life of a kernel (`agent-protocol.md` 6.8), between the ports that managers know and the
//! pseudo-terminal that the runner gives out.
//!
//! Invariants: nothing runs before somebody types or looks; a shell that ends is followed by another while somebody looks;
//! programs do not stand still because nobody looks, and print no faster than those who look can read, within limits;
//! typing is use of the kernel, and printing that somebody sees.
//!
//! Not here: the shell (the runner), frames (`bai_proto::pty`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bai_proto::descriptor::Descriptor;
use bai_proto::pty::{BACKLOG, TerminalServer};
use bytes::{Buf, Bytes};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::host::Host;
use crate::runtime::KernelSpec;

/// Read at once, as in 19.06.
const CHUNK: usize = 4096;
/// Between two reads while nobody looks: what floods an unseen terminal must not cost the agent a processor.
const UNSEEN_PAUSE: Duration = Duration::from_millis(1);
/// Between two looks whether those who look have caught up, and how long one of them may hold up the others.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(1);
/// A shell that ends sooner than this is not followed by another at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// What 19.06 says between two shells.
const RESTARTING: &[u8] = b"\r\nRestarting...\r\n";

/// The ports, what is typed there, and what is to be printed there.
pub(crate) type Ends = (TerminalServer, mpsc::Receiver<Bytes>, broadcast::Sender<Bytes>);

/// Rows and columns of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// Serves the terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    host: Arc<Host>,
    spec: KernelSpec,
    size: watch::Receiver<Option<Size>>,
}

/// How the passing of bytes ended.
enum End {
    /// The shell is gone.
    Shell,
    /// The ports are.
    Ports,
}

impl Terminal {
    /// A terminal whose window gets the size that is sent last.
    pub fn new(host: &Arc<Host>, spec: &KernelSpec) -> (Self, watch::Sender<Option<Size>>) {
        let (resize, size) = watch::channel(None);
        let terminal = Self {
            host: Arc::clone(host),
            spec: spec.clone(),
            size,
        };
        (terminal, resize)
    }

    /// Serves until dropped.
    pub async fn serve(self, (server, typed, printed): Ends) {
        let stop = CancellationToken::new();
        // The server's connections are tasks of their own, which end with this one.
        let _stop = stop.clone().drop_guard();
        let screen = Screen {
            watched: server.watched(),
            printed,
            behind_since: None,
        };
        tokio::select! {
            () = server.run(stop) => {}
            () = self.keep_shells(typed, screen) => {}
        }
    }

    async fn keep_shells(mut self, mut typed: mpsc::Receiver<Bytes>, mut screen: Screen) {
        let mut unread = Bytes::new();
        loop {
            tokio::select! {
                () = screen.watched.notified() => {}
                bytes = typed.recv() => match bytes {
                    Some(bytes) => unread = bytes,
                    None => return,
                },
            }
            while let Some(begun) = self.run_shell(&mut unread, &mut typed, &mut screen).await {
                screen.print(Bytes::from_static(RESTARTING)).await;
                if begun.elapsed() < SHORT_LIFE {
                    tokio::time::sleep(SHORT_LIFE).await;
                }
                if screen.is_unseen() {
                    break;
                }
            }
        }
    }

    /// Passes bytes during the life of one shell, and says when that began. `None` if there was none, or nobody can type
    /// any more.
    async fn run_shell(
        &mut self,
        unread: &mut Bytes,
        typed: &mut mpsc::Receiver<Bytes>,
        screen: &mut Screen,
    ) -> Option<Instant> {
        let begun = Instant::now();
        let runtime = &self.host.runtime;
        let opened = runtime.descriptor(&self.spec, Descriptor::Terminal).await;
        let outcome = match opened.and_then(register) {
            Ok(master) => self.pass(&master, unread, typed, screen).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(End::Shell) => Some(begun),
            Ok(End::Ports) => None,
            Err(error) => {
                tracing::warn!(kernel.id = %self.spec.kernel, %error, "a terminal cannot be opened");
                let text =
                    format!("\r\nThe terminal cannot be opened: {error}. Press a key to try again.\r\n");
                screen.print(text.into()).await;
                unread.clear();
                None
            }
        }
    }

    async fn pass(
        &mut self,
        master: &AsyncFd<File>,
        unread: &mut Bytes,
        typed: &mut mpsc::Receiver<Bytes>,
        screen: &mut Screen,
    ) -> io::Result<End> {
        self.size.mark_changed();
        let mut window = Window {
            master: master.get_ref(),
            change: None,
        };
        loop {
            tokio::select! {
                ready = master.readable() => {
                    let mut chunk = [0; CHUNK];
                    match ready?.try_io(|master| master.get_ref().read(&mut chunk)) {
                        Ok(Ok(0)) => return Ok(End::Shell),
                        // What a hang-up looks like from here.
                        Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(End::Shell),
                        Ok(Err(error)) => return Err(error),
                        Ok(Ok(count)) => {
                            window.keep()?;
                            if !screen.is_unseen() {
                                self.host.note_use(self.spec.kernel);
                            }
                            screen.print(Bytes::copy_from_slice(&chunk[..count])).await;
                        }
                        Err(_would_block) => {}
                    }
                }
                ready = master.writable(), if unread.has_remaining() => {
                    match ready?.try_io(|master| master.get_ref().write(unread)) {
                        Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(End::Shell),
                        Ok(written) => unread.advance(written?),
                        Err(_would_block) => {}
                    }
                }
                bytes = typed.recv(), if !unread.has_remaining() => match bytes {
                    Some(bytes) => {
                        self.host.note_use(self.spec.kernel);
                        *unread = bytes;
                    }
                    None => return Ok(End::Ports),
                },
                Ok(()) = self.size.changed() => {
                    let size = *self.size.borrow_and_update();
                    if let Some(size) = size {
                        window.resize(size)?;
                    }
                }
            }
        }
    }
}

/// Where everything is printed.
#[derive(Debug)]
struct Screen {
    printed: broadcast::Sender<Bytes>,
    watched: Arc<Notify>,
    /// Since when somebody who looks is far behind.
    behind_since: Option<Instant>,
}

impl Screen {
    fn is_unseen(&self) -> bool {
        self.printed.receiver_count() == 0
    }

    /// Prints, and waits for those who look to come near. One who stands still loses something.
    async fn print(&mut self, bytes: Bytes) {
        if self.printed.send(bytes).is_err() {
            // Nobody sees it.
            return tokio::time::sleep(UNSEEN_PAUSE).await;
        }
        while self.printed.len() > BACKLOG / 2 {
            if self.behind_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return;
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
        self.behind_since = None;
    }
}

/// Makes the descriptor one that can be waited for.
#[expect(
    unsafe_code,
    reason = "the library cannot know that a file keeps its descriptor"
)]
fn register(master: OwnedFd) -> io::Result<AsyncFd<File>> {
    // SAFETY: a file has the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(File::from(master)) }?)
}

/// The size of a terminal's window.
#[derive(Debug)]
struct Window<'a> {
    master: &'a File,
    /// From what to what it was changed last, until a program has undone it.
    change: Option<(Size, Size)>,
}

impl Window<'_> {
    /// Tells the terminal, and by a signal its programs.
    fn resize(&mut self, size: Size) -> io::Result<()> {
        let before = self.size()?;
        self.change = (before != size).then_some((before, size));
        self.set(size)
    }

    /// Tells it once more after a program has put back what was before: readline, and with it every shell, reads the size
    /// and writes it before each prompt, and undoes a change that comes between the two. Who does it again wants it so.
    fn keep(&mut self) -> io::Result<()> {
        if let Some((before, size)) = self.change
            && self.size()? == before
        {
            self.change = None;
            self.set(size)?;
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "an ioctl that no library of ours wraps")]
    fn size(&self) -> io::Result<Size> {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open, and the request writes one structure of the type that it is given.
        unsafe { get_window_size(self.master.as_raw_fd(), &raw mut size) }?;
        Ok(Size {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }

    #[expect(unsafe_code, reason = "an ioctl that no library of ours wraps")]
    fn set(&self, size: Size) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open, and the request reads one structure of the type that it is given.
        unsafe { set_window_size(self.master.as_raw_fd(), &raw const size) }?;
        Ok(())
    }
}

nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
