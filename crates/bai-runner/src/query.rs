//! Query mode of languages with an interpreter that stays: Python and the POSIX shell.
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
use std::time::{Duration, Instant};

use bai_proto::runner::Record;
use serde_json::Value;

use crate::control::{Control, Run};
use crate::event::{Event, Events};
use crate::lang::{self, Driver, Runtime};
use crate::outbox::Outbox;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::stdin::{Awaited, Stdin};
use crate::strays::Strays;

/// Descriptors of the driver's pipes in the interpreter.
const COMMANDS: i32 = 3;
const EVENTS: i32 = 4;
/// How long a silent interpreter without its pipe may live on.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The interpreter of a session.
#[derive(Debug)]
pub struct Query {
    runtime: Arc<Runtime>,
    outbox: Outbox,
    control: Control,
    strays: Strays,
    scratch: Scratch,
    interpreter: Option<Interpreter>,
}

#[derive(Debug)]
struct Interpreter {
    process: Process,
    commands: Arc<File>,
    events: Events,
    /// The shell's; other drivers ask for input.
    stdin: Option<Arc<Mutex<Stdin>>>,
}

impl Query {
    pub fn new(runtime: Arc<Runtime>, outbox: Outbox, control: Control, strays: Strays) -> Self {
        Self {
            runtime,
            outbox,
            control,
            strays,
            scratch: Scratch::default(),
            interpreter: None,
        }
    }

    fn driver(&self) -> Option<Driver> {
        match self.runtime.language.query {
            lang::Query::Driver(driver) => Some(driver),
            lang::Query::File { .. } => None,
        }
    }

    /// Starts the interpreter, if the language has one, before it is asked for.
    pub fn warm_up(&mut self) {
        if self.interpreter.is_none()
            && let Some(driver) = self.driver()
        {
            // A failure is told when somebody wants to run something.
            self.interpreter = self.start(driver).ok();
        }
    }

    /// Passes on what background threads and processes print, until `wake` has something.
    pub fn idle_until(&mut self, wake: BorrowedFd<'_>) {
        while let Some(interpreter) = &mut self.interpreter {
            match interpreter.process.pump(Some(wake), None) {
                Ok(seen) if !seen.other => {}
                _ => return,
            }
        }
    }

    /// Runs code and returns the exit code.
    pub fn run(&mut self, code: &str) -> i32 {
        let name = self.runtime.language.log_name;
        let Some(driver) = self.driver() else { return 127 };
        self.bury_the_dead(driver);
        let command = match driver {
            Driver::Python => format!("code - {}\n{code}", code.len()),
            Driver::Shell => match self.scratch.write("cell.sh", &format!("{code}\n")) {
                Ok(file) => format!("{}\n", file.display()),
                Err(error) => {
                    self.outbox
                        .complain(&format!("the code cannot be written to a file: {error}\n"));
                    return -1;
                }
            },
        };
        let mut interpreter = match self.interpreter.take().map_or_else(|| self.start(driver), Ok) {
            Ok(interpreter) => interpreter,
            Err(error) => {
                self.outbox
                    .complain(&format!("{name}-kernel: query mode is not available: {error}\n"));
                return 127;
            }
        };
        interpreter.process.output().begin_run();
        self.control.begin(interpreter.run());
        let followed = self.follow(&mut interpreter, &command);
        self.control.end();
        match followed {
            Ok(code) => {
                self.interpreter = Some(interpreter);
                code
            }
            Err(error) => {
                let code = self.bury(interpreter, driver, &error);
                // The next run finds a fresh one.
                self.warm_up();
                code
            }
        }
    }

    /// Names that continue the code, as a JSON array. `request` is JSON: `code`, and of the cursor `row`, `col`, `line`.
    pub fn complete(&mut self, request: &str) -> String {
        let none = || "[]".to_owned();
        if self.driver() != Some(Driver::Python) {
            return none();
        }
        let text = before_cursor(&serde_json::from_str(request).unwrap_or_default());
        let Some(mut interpreter) = self.interpreter.take() else {
            return none();
        };
        self.control.begin(interpreter.run());
        let asked = interpreter.tell(&format!("complete - {}\n{text}", text.len()));
        let answer = asked.and_then(|()| interpreter.next_event(None));
        self.control.end();
        match answer {
            Ok(event) => {
                self.interpreter = Some(interpreter);
                match event {
                    Some(Event::Completions(names)) => Value::from(names).to_string(),
                    _ => none(),
                }
            }
            Err(error) => {
                self.bury(interpreter, Driver::Python, &error);
                self.warm_up();
                none()
            }
        }
    }

    /// Follows a run to its end. An error means that the interpreter is gone or of no more use.
    fn follow(&self, interpreter: &mut Interpreter, command: &str) -> io::Result<i32> {
        interpreter.tell(command)?;
        let mut awaited = Awaited::default();
        loop {
            let Some(event) = interpreter.next_event(Some((&mut awaited, &self.outbox)))? else {
                continue;
            };
            match event {
                Event::Done(code) => return Ok(code),
                Event::Ask { number, is_password } => {
                    if !self.control.ask(number) {
                        let is_password = Some(is_password);
                        self.outbox.send(&Record::WaitingInput { is_password });
                    }
                }
                Event::Html(text) => self.outbox.send(&Record::Html(text)),
                Event::Media { mime, data } => self.outbox.send(&Record::Media { mime, data }),
                Event::Completions(_) => {}
            }
        }
    }

    /// Tells the user about an interpreter that died while nothing ran.
    fn bury_the_dead(&mut self, driver: Driver) {
        if let Some(interpreter) = self
            .interpreter
            .take_if(|interpreter| interpreter.process.has_ended())
        {
            self.bury(interpreter, driver, &io::ErrorKind::UnexpectedEof.into());
        }
    }

    /// Reports the end of an interpreter, with its exit code.
    fn bury(&self, interpreter: Interpreter, driver: Driver, error: &io::Error) -> i32 {
        let name = self.runtime.language.log_name;
        let is_broken = error.kind() == io::ErrorKind::InvalidData;
        match interpreter.process.bury(&self.strays) {
            // Who types `exit` knows.
            Ok(end) if driver == Driver::Shell && end.is_exit() && !is_broken => end.code(),
            Ok(end) => {
                let why = match is_broken {
                    true => format!("was ended: {error}"),
                    false => end.to_string(),
                };
                self.outbox.complain(&format!(
                    "{name}-kernel: the interpreter {why}; a new one starts, without its variables.\n"
                ));
                end.code()
            }
            Err(error) => {
                self.outbox
                    .complain(&format!("{name}-kernel: the interpreter is lost: {error}\n"));
                -1
            }
        }
    }

    fn start(&self, driver: Driver) -> io::Result<Interpreter> {
        let (command_end, commands) = io::pipe()?;
        let (events, event_end) = io::pipe()?;
        let mut command = Command::new(&self.runtime.path);
        driver.arguments(&mut command);
        command.env_clear().envs(&self.runtime.environ);
        command.stdin(match driver {
            Driver::Python => Stdio::null(),
            Driver::Shell => Stdio::piped(),
        });
        pass_descriptors(&mut command, command_end.into(), event_end.into());
        let (process, stdin) = Process::spawn(&mut command, self.outbox.clone())?;
        let stdin = stdin.map(Stdin::new).transpose()?;
        Ok(Interpreter {
            process,
            commands: Arc::new(OwnedFd::from(commands).into()),
            events: Events::new(OwnedFd::from(events).into()),
            stdin: stdin.map(|stdin| Arc::new(Mutex::new(stdin))),
        })
    }
}

/// The code up to the cursor: of the line if the client tells it, of the code otherwise. Columns count characters.
fn before_cursor(request: &Value) -> String {
    let code = request["code"].as_str().unwrap_or_default();
    let row = request["row"]
        .as_u64()
        .and_then(|row| code.lines().nth(usize::try_from(row).ok()?));
    let line = request["line"]
        .as_str()
        .filter(|line| !line.is_empty())
        .or(row)
        .unwrap_or(code);
    let column = request["col"]
        .as_u64()
        .and_then(|column| usize::try_from(column).ok());
    line.chars().take(column.unwrap_or(usize::MAX)).collect()
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

impl Interpreter {
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
        let deadline = Instant::now() + LAST_BREATH;
        while !self.process.has_ended() {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            if left == 0 {
                return io::Error::new(io::ErrorKind::InvalidData, "it closed a pipe of the runner");
            }
            if let Err(error) = self.process.pump(None, u16::try_from(left).ok()) {
                return error;
            }
        }
        io::ErrorKind::UnexpectedEof.into()
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
            let seen = self.process.pump(Some(self.events.pipe().as_fd()), pause)?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::before_cursor;

    #[test]
    fn the_cursor_may_be_told_in_several_ways() {
        for (request, expected) in [
            (json!({"code": "import os\nos.pa"}), "import os\nos.pa"),
            (json!({"code": "a\nos.path.x", "row": 1, "col": 5}), "os.pa"),
            (
                json!({"code": "x", "line": "한os.path", "col": 4, "row": 9}),
                "한os.",
            ),
            (
                json!({"code": "abc", "row": 0, "col": 1, "line": "", "post": ""}),
                "a",
            ),
            (json!({"code": "abc", "row": -1, "col": 1e99, "line": 5}), "abc"),
            (json!([1]), ""),
        ] {
            assert_eq!(before_cursor(&request), expected, "{request}");
        }
    }
}
