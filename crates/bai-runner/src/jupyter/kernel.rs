//! A kernel: its process, and the sockets on which it is talked with.
//!
//! Sockets are unix ones in a folder of the session's user (`transport` `ipc`), so that no port has to be found, and no
//! other session can be reached where sessions share a network.
//!
//! Not here: what is said (`super`).

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bai_proto::zmtp::{SocketType, ZmtpError, subscription};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::channel::Channel;
use super::message::{Received, Signer};
use super::spec::Spec;
use crate::control::{Order, OrderBook};
use crate::lang::FIGURES;
use crate::output::Output;
use crate::process::{End, Process};
use crate::query::Parts;
use crate::scratch::Scratch;

/// How often a kernel that starts is looked at.
const START_POLL: Duration = Duration::from_millis(5);
/// After this long without a sign that it hears us on one socket, what was said there is said again.
const REPEAT: Duration = Duration::from_millis(50);
/// How long a kernel whose sockets have ended may live on.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// A kernel and what it takes to talk with it.
#[derive(Debug)]
pub struct Kernel {
    process: Process,
    files: Files,
    signer: Signer,
    channels: Option<Channels>,
    /// One of its sockets has ended.
    is_lost: bool,
}

#[derive(Debug)]
struct Channels {
    shell: Channel,
    iopub: Channel,
    stdin: Channel,
    control: Channel,
}

/// The sockets that we connect to, by the number that they have in the connection file.
#[derive(Clone, Copy, Debug)]
pub enum Socket {
    Shell = 1,
    IoPub = 2,
    Stdin = 3,
    Control = 4,
}

/// What a kernel says.
#[derive(Debug)]
pub enum Heard {
    /// To everybody: output, and what it is doing.
    Published(Received),
    /// It answers.
    Reply(Received),
    /// It asks the user.
    Question(Received),
    /// More at once than we take.
    TooMuch,
}

/// Why [`Kernel::connect`] has come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    Ready,
    Interrupted,
}

impl Kernel {
    /// Starts the process, and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(spec: &Spec, parts: &Parts, scratch: &Scratch, number: u32) -> io::Result<Self> {
        let signer = Signer::new()?;
        let files = Files {
            sockets: scratch.path().join(format!("kernel-{number}")),
            connection: scratch.path().join(format!("kernel-{number}.json")),
        };
        files.remove();
        let connection = json!({
            "transport": "ipc",
            "ip": files.sockets,
            "shell_port": Socket::Shell as u8,
            "iopub_port": Socket::IoPub as u8,
            "stdin_port": Socket::Stdin as u8,
            "control_port": Socket::Control as u8,
            "hb_port": Files::HEARTBEAT,
            "key": signer.key(),
            "signature_scheme": "hmac-sha256",
            "kernel_name": spec.name,
        });
        let file = scratch.write(&format!("kernel-{number}.json"), &connection.to_string())?;
        let file = file.display().to_string();
        let mut words = spec
            .argv
            .iter()
            .map(|word| word.replace("{connection_file}", &file));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).env_clear().envs(&parts.runtime.environ);
        if parts
            .runtime
            .environ
            .get(FIGURES.0)
            .is_some_and(|value| value == FIGURES.1)
        {
            // The kernel shows figures itself, if it is not told to do otherwise.
            command.env_remove(FIGURES.0);
        }
        command
            .envs(spec.environ.iter().cloned())
            // It ends when we do, also where nobody ends it.
            .env("JPY_PARENT_PID", std::process::id().to_string())
            .stdin(Stdio::null());
        let (mut process, _) = Process::spawn(&mut command, parts.outbox.clone())?;
        process.output().withhold();
        Ok(Self {
            process,
            files,
            signer,
            channels: None,
            is_lost: false,
        })
    }

    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    pub fn output(&mut self) -> &mut Output {
        self.process.output()
    }

    /// Whether nothing can be run by it any more.
    pub fn is_gone(&self) -> bool {
        self.is_lost || self.process.has_ended()
    }

    pub fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Waits until it answers on all sockets, or the user does not want to wait any longer.
    ///
    /// # Errors
    /// When it does not come so far, with what it printed.
    pub fn connect(&mut self, orders: &mut OrderBook, patience: Duration) -> io::Result<Connected> {
        if self.channels.is_some() {
            return Ok(Connected::Ready);
        }
        let deadline = Instant::now() + patience;
        let connected = self.try_connect(orders, deadline);
        if connected.is_err() {
            self.channels = None;
        }
        if let Ok(Connected::Ready) = connected {
            self.process.output().release();
        }
        connected.map_err(|error| {
            let said = String::from_utf8_lossy(&self.process.output().release()).into_owned();
            // It may yet become ready.
            self.process.output().withhold();
            let said = said.trim_end();
            let lines = if said.is_empty() { "" } else { "; it said:\n" };
            io::Error::new(error.kind(), format!("{error}{lines}{said}"))
        })
    }

    fn try_connect(&mut self, orders: &mut OrderBook, deadline: Instant) -> io::Result<Connected> {
        let mut asked: Option<Instant> = None;
        let (mut is_answered, mut is_published) = (false, false);
        loop {
            if orders.next() == Some(Order::Interrupt) {
                // Halfway connected is not connected.
                self.channels = None;
                return Ok(Connected::Interrupted);
            }
            let had_ended = self.process.has_ended();
            if self.channels.is_none() {
                self.channels = self.open_channels()?;
            }
            // What is published before we are known as a listener is lost. So it is asked until both ways are heard.
            if self.channels.is_some() && asked.is_none_or(|at| is_answered && at.elapsed() >= REPEAT) {
                (asked, is_answered) = (Some(Instant::now()), false);
                self.ask(Socket::Shell, "kernel_info_request", &json!({}))?;
            }
            while let Some(heard) = self.hear()? {
                match heard {
                    Heard::Published(_) => is_published = true,
                    Heard::Reply(reply) => is_answered |= reply.kind == "kernel_info_reply",
                    Heard::Question(_) | Heard::TooMuch => {}
                }
            }
            if is_answered && is_published {
                return Ok(Connected::Ready);
            }
            if had_ended {
                return Err(io::Error::other("it ended before it was ready"));
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it does not become ready",
                ));
            }
            let pause = if self.channels.is_some() {
                REPEAT
            } else {
                START_POLL
            };
            self.wait(&[orders.as_fd()], Some(pause))?;
        }
    }

    /// `None` as long as it does not listen.
    fn open_channels(&self) -> io::Result<Option<Channels>> {
        let open = |socket, ours| -> io::Result<Option<Channel>> {
            for path in self.files.socket(socket as u8) {
                match Channel::open(&path, ours, self.signer.session().as_bytes()) {
                    Ok(channel) => return Ok(Some(channel)),
                    Err(ZmtpError::Io(error)) if is_too_early(&error) => {}
                    Err(error) => return Err(broken(error)),
                }
            }
            Ok(None)
        };
        // The one first that is opened last by most kernels.
        let Some(control) = open(Socket::Control, SocketType::Dealer)? else {
            return Ok(None);
        };
        let Some(shell) = open(Socket::Shell, SocketType::Dealer)? else {
            return Ok(None);
        };
        let Some(stdin) = open(Socket::Stdin, SocketType::Dealer)? else {
            return Ok(None);
        };
        let Some(mut iopub) = open(Socket::IoPub, SocketType::Sub)? else {
            return Ok(None);
        };
        iopub.send(&subscription(b"")).map_err(broken)?;
        Ok(Some(Channels {
            shell,
            iopub,
            stdin,
            control,
        }))
    }

    /// What it says next; `None` when it says nothing yet.
    ///
    /// # Errors
    /// When a socket has ended.
    pub fn hear(&mut self) -> io::Result<Option<Heard>> {
        loop {
            let Some(channels) = &mut self.channels else {
                return Ok(None);
            };
            let heard = match channels.iopub.receive() {
                Err(ZmtpError::TooLarge(_) | ZmtpError::TooManyFrames(_)) => {
                    self.listen_again()?;
                    return Ok(Some(Heard::TooMuch));
                }
                Err(error) => Err(error),
                Ok(Some(message)) => Ok(Some((Heard::Published as fn(Received) -> Heard, message))),
                Ok(None) => channels.next_directed(),
            };
            let heard = heard.map_err(|error| {
                self.is_lost = true;
                broken(error)
            })?;
            let Some((kind, message)) = heard else {
                return Ok(None);
            };
            if let Some(message) = self.signer.open(&message) {
                return Ok(Some(kind(message)));
            }
        }
    }

    /// A new connection to what it publishes; what it publishes meanwhile is lost.
    fn listen_again(&mut self) -> io::Result<()> {
        let opened = self
            .files
            .socket(Socket::IoPub as u8)
            .into_iter()
            .find_map(|path| {
                let mut iopub = Channel::open(&path, SocketType::Sub, b"").ok()?;
                iopub.send(&subscription(b"")).ok()?;
                Some(iopub)
            });
        match (opened, &mut self.channels) {
            (Some(iopub), Some(channels)) => {
                channels.iopub = iopub;
                Ok(())
            }
            _ => {
                self.is_lost = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    /// Begins something; its id.
    ///
    /// # Errors
    /// When it does not listen any more.
    pub fn ask(&mut self, socket: Socket, kind: &str, content: &Value) -> io::Result<String> {
        let (id, message) = self.signer.request(kind, content);
        self.channel(socket)?.send(&message).map_err(broken)?;
        Ok(id)
    }

    /// Answers a question to the user.
    ///
    /// # Errors
    /// As [`Kernel::ask`].
    pub fn answer(&mut self, question: &Received, text: &str) -> io::Result<()> {
        let value = text.strip_suffix('\n').unwrap_or(text);
        let message = self
            .signer
            .answer(question, "input_reply", &json!({"value": value}));
        self.channel(Socket::Stdin)?.send(&message).map_err(broken)
    }

    fn channel(&mut self, socket: Socket) -> io::Result<&mut Channel> {
        let channels = self.channels.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(match socket {
            Socket::Shell => &mut channels.shell,
            Socket::IoPub => &mut channels.iopub,
            Socket::Stdin => &mut channels.stdin,
            Socket::Control => &mut channels.control,
        })
    }

    /// Waits until it says or prints something, ends, one of `others` has something, or the time is over.
    ///
    /// # Errors
    /// When polling fails.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], patience: Option<Duration>) -> io::Result<()> {
        let milliseconds = patience.map(|patience| {
            // Rounded up, so that nobody looks again and again in the last millisecond.
            u16::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
        });
        let mut watched = others.to_vec();
        if let Some(channels) = self.channels.as_ref().filter(|_| !self.is_lost) {
            let Channels {
                shell,
                iopub,
                stdin,
                control,
            } = channels;
            watched.extend([iopub, shell, stdin, control].map(Channel::as_fd));
        }
        self.process.pump(&watched, milliseconds).map(drop)
    }

    /// Ends it, if it does not end by itself at once, and says how it ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn bury(mut self, parts: &Parts) -> io::Result<End> {
        if self.is_lost {
            self.process.ends_within(LAST_BREATH)?;
        }
        self.process.bury(&parts.strays)
    }
}

impl Channels {
    /// What it says to us alone.
    #[expect(
        clippy::type_complexity,
        reason = "what is heard is made of the message once it is read"
    )]
    fn next_directed(&mut self) -> Result<Option<(fn(Received) -> Heard, Vec<bytes::Bytes>)>, ZmtpError> {
        if let Some(message) = self.shell.receive()? {
            return Ok(Some((Heard::Reply, message)));
        }
        if let Some(message) = self.stdin.receive()? {
            return Ok(Some((Heard::Question, message)));
        }
        // Answers to interrupts say nothing.
        Ok(self
            .control
            .receive()?
            .map(|message| (Heard::Reply as fn(Received) -> Heard, message)))
    }
}

/// The kernel may not have come so far.
fn is_too_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The end of a connection is an end; everything else is nothing that a kernel would do.
fn broken(error: ZmtpError) -> io::Error {
    match error {
        ZmtpError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::InvalidData, "it does not read what it is told")
        }
        ZmtpError::Io(_) => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

/// Files of a kernel; they go with it.
#[derive(Debug)]
struct Files {
    connection: PathBuf,
    /// What the names of its sockets begin with.
    sockets: PathBuf,
}

impl Files {
    const HEARTBEAT: u8 = 5;

    /// Kernels differ in how they join folder and number.
    fn socket(&self, number: u8) -> [PathBuf; 2] {
        ["-", ":"].map(|joint| format!("{}{joint}{number}", self.sockets.display()).into())
    }

    fn remove(&self) {
        _ = fs::remove_file(&self.connection);
        for number in 1..=Self::HEARTBEAT {
            for path in self.socket(number) {
                _ = fs::remove_file(path);
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.remove();
    }
}
