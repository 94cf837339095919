//! An interpreter of the session's own that stays: Python or the POSIX shell.
//!
//! The interpreter runs a small driver of ours and talks with us over two pipes of its own (descriptors 3 and 4); its
//! stdout and stderr are the user's. Commands and events are `WORD ARGUMENT LENGTH`, a newline, and that many bytes; the
//! shell's commands are names of files instead.
//!
//! Invariants: everything that a run printed is passed on before the run is reported finished; an interpreter that dies is
//! replaced, and the user is told; what user code writes to our pipes harms only its own run.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bai_proto::runner::Record;

use super::Parts;
use super::event::{Event, Events};
use crate::control::Run;
use crate::lang::Driver;
use crate::outbox::Outbox;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::stdin::{Awaited, Stdin};

/// Descriptors of the driver's pipes in the interpreter.
const COMMANDS: i32 = 3;
const EVENTS: i32 = 4;
/// How long a silent interpreter without its pipe may live on.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The interpreter of a session.
#[derive(Debug)]
pub struct Interpreter {
    parts: Parts,
    driver: Driver,
    scratch: Scratch,
    process: Option<Driven>,
}

/// A process of it, with a driver of ours inside.
#[derive(Debug)]
struct Driven {
    process: Process,
    commands: Arc<File>,
    events: Events,
    /// The shell's; other drivers ask for input.
    stdin: Option<Arc<Mutex<Stdin>>>,
}

impl Interpreter {
    /// Starts the interpreter before it is asked for: the first run finds it warm.
    pub fn start(parts: Parts, driver: Driver) -> Self {
        let mut interpreter = Self {
            parts,
            driver,
            scratch: Scratch::default(),
            process: None,
        };
        interpreter.warm_up();
        interpreter
    }

    fn warm_up(&mut self) {
        if self.process.is_none() {
            // A failure is told when somebody wants to run something.
            self.process = self.spawn().ok();
        }
    }

    /// Passes on what background threads and processes print, until `wake` has something.
    pub fn idle_until(&mut self, wake: BorrowedFd<'_>) {
        while let Some(driven) = &mut self.process {
            match driven.process.pump(&[wake], None) {
                Ok(seen) if !seen.other => {}
                _ => return,
            }
        }
    }

    /// Runs code and returns the exit code.
    pub fn run(&mut self, code: &str) -> i32 {
        let name = self.parts.runtime.language.log_name;
        let complain = |text: &str| self.parts.outbox.complain(text);
        let command = match self.driver {
            Driver::Python => format!("code - {}\n{code}", code.len()),
            Driver::Shell => match self.scratch.write("cell.sh", &format!("{code}\n")) {
                Ok(file) => format!("{}\n", file.display()),
                Err(error) => {
                    complain(&format!("the code cannot be written to a file: {error}\n"));
                    return -1;
                }
            },
        };
        if let Some(dead) = self.process.take_if(|driven| driven.process.has_ended()) {
            self.bury(dead, &io::ErrorKind::UnexpectedEof.into());
        }
        let mut driven = match self.process.take().map_or_else(|| self.spawn(), Ok) {
            Ok(driven) => driven,
            Err(error) => {
                complain(&format!("{name}-kernel: query mode is not available: {error}\n"));
                return 127;
            }
        };
        driven.process.output().begin_run();
        self.parts.control.begin(driven.run());
        let followed = self.follow(&mut driven, &command);
        self.parts.control.end();
        match followed {
            Ok(code) => {
                self.process = Some(driven);
                code
            }
            Err(error) => {
                let code = self.bury(driven, &error);
                // The next run finds a fresh one.
                self.warm_up();
                code
            }
        }
    }

    /// Names that continue the text.
    pub fn complete(&mut self, text: &str) -> Vec<String> {
        if self.driver != Driver::Python {
            return Vec::new();
        }
        let Some(mut driven) = self.process.take() else {
            return Vec::new();
        };
        self.parts.control.begin(driven.run());
        let asked = driven.tell(&format!("complete - {}\n{text}", text.len()));
        let answer = asked.and_then(|()| driven.next_event(None));
        self.parts.control.end();
        match answer {
            Ok(event) => {
                self.process = Some(driven);
                match event {
                    Some(Event::Completions(names)) => names,
                    _ => Vec::new(),
                }
            }
            Err(error) => {
                self.bury(driven, &error);
                self.warm_up();
                Vec::new()
            }
        }
    }

    /// Follows a run to its end. An error means that the interpreter is gone or of no more use.
    fn follow(&self, driven: &mut Driven, command: &str) -> io::Result<i32> {
        driven.tell(command)?;
        let mut awaited = Awaited::default();
        loop {
            let Some(event) = driven.next_event(Some((&mut awaited, &self.parts.outbox)))? else {
                continue;
            };
            match event {
                Event::Done(code) => return Ok(code),
                Event::Ask { number, is_password } => {
                    if !self.parts.control.ask(number) {
                        let is_password = Some(is_password);
                        self.parts.outbox.send(&Record::WaitingInput { is_password });
                    }
                }
                Event::Html(text) => self.parts.outbox.send(&Record::Html(text)),
                Event::Media { mime, data } => self.parts.outbox.send(&Record::Media { mime, data }),
                Event::Completions(_) => {}
            }
        }
    }

    /// Reports the end of an interpreter, with its exit code.
    fn bury(&self, driven: Driven, error: &io::Error) -> i32 {
        let name = self.parts.runtime.language.log_name;
        let is_broken = error.kind() == io::ErrorKind::InvalidData;
        match driven.process.bury(&self.parts.strays) {
            // Who types `exit` knows.
            Ok(end) if self.driver == Driver::Shell && end.is_exit() && !is_broken => end.code(),
            Ok(end) => {
                let why = match is_broken {
                    true => format!("was ended: {error}"),
                    false => end.to_string(),
                };
                self.parts.outbox.complain(&format!(
                    "{name}-kernel: the interpreter {why}; a new one starts, without its variables.\n"
                ));
                end.code()
            }
            Err(error) => {
                self.parts
                    .outbox
                    .complain(&format!("{name}-kernel: the interpreter is lost: {error}\n"));
                -1
            }
        }
    }

    fn spawn(&self) -> io::Result<Driven> {
        let (command_end, commands) = io::pipe()?;
        let (events, event_end) = io::pipe()?;
        let mut command = Command::new(&self.parts.runtime.path);
        self.driver.arguments(&mut command);
        command.env_clear().envs(&self.parts.runtime.environ);
        command.stdin(match self.driver {
            Driver::Python => Stdio::null(),
            Driver::Shell => Stdio::piped(),
        });
        pass_descriptors(&mut command, command_end.into(), event_end.into());
        let (process, stdin) = Process::spawn(&mut command, self.parts.outbox.clone())?;
        let stdin = stdin.map(Stdin::new).transpose()?;
        Ok(Driven {
            process,
            commands: Arc::new(OwnedFd::from(commands).into()),
            events: Events::new(OwnedFd::from(events).into()),
            stdin: stdin.map(|stdin| Arc::new(Mutex::new(stdin))),
        })
    }
}

/// Makes the two pipe ends the child's descriptors 3 and 4.
#[expect(unsafe_code, reason = "descriptors can only be placed between fork and exec")]
fn pass_descriptors(command: &mut Command, commands: OwnedFd, events: OwnedFd) {
    let place = move || {
        // Above the targets first, so that neither placement overwrites the other's source.
        let high = |fd: &OwnedFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10));
        let (commands, events) = (high(&commands)?, high(&events)?);
        // SAFETY: dup2 is async-signal-safe and touches no memory of ours.
        let placed = unsafe { libc::dup2(commands, COMMANDS) >= 0 && libc::dup2(events, EVENTS) >= 0 };
        if placed {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure only calls async-signal-safe functions and does not allocate.
    unsafe {
        command.pre_exec(place);
    }
}

impl Driven {
    /// How to reach it while it runs something.
    fn run(&self) -> Run {
        let group = self.process.pid();
        match &self.stdin {
            Some(stdin) => Run::Program {
                group,
                stdin: stdin.clone(),
            },
            None => Run::Interpreter {
                group,
                commands: self.commands.clone(),
                question: None,
            },
        }
    }

    fn tell(&self, command: &str) -> io::Result<()> {
        (&*self.commands).write_all(command.as_bytes())
    }

    /// Its events have ended: it is about to end as well, or user code has closed its end of the pipe.
    fn why_it_fell_silent(&mut self) -> io::Error {
        match self.process.ends_within(LAST_BREATH) {
            Ok(true) => io::ErrorKind::UnexpectedEof.into(),
            Ok(false) => io::Error::new(io::ErrorKind::InvalidData, "it closed a pipe of the runner"),
            Err(error) => error,
        }
    }

    /// The next event of the driver; output is passed on meanwhile, and the user is told if the program waits for input.
    /// `None` when there is nothing yet.
    fn next_event(&mut self, user: Option<(&mut Awaited, &Outbox)>) -> io::Result<Option<Event>> {
        let mut user = user;
        loop {
            if let Some(event) = self.events.take()? {
                return Ok(Some(event));
            }
            let had_ended = self.process.has_ended();
            let pause = match (&self.stdin, &user) {
                _ if had_ended => Some(0),
                (Some(_), Some((awaited, _))) => Some(awaited.pause()),
                _ => None,
            };
            let seen = self.process.pump(&[self.events.pipe().as_fd()], pause)?;
            if seen.other {
                if !self.events.read()? {
                    return Err(self.why_it_fell_silent());
                }
            } else if had_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else if let (Some(stdin), Some((awaited, outbox))) = (&self.stdin, &mut user) {
                let lock = || stdin.lock().unwrap_or_else(PoisonError::into_inner);
                if awaited.begins(seen.output, lock) {
                    outbox.send(&Record::WaitingInput { is_password: None });
                }
            }
        }
    }
}
