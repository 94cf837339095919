//! Query mode of languages with an interpreter that stays: Python and the POSIX shell.
//!
//! The interpreter runs a small driver of ours and speaks JSON lines with us over two pipes of its own (descriptors 3 and
//! 4); its stdout and stderr are the user's. Invariants: everything that a run printed is passed on before the run is
//! reported finished; an interpreter that dies is replaced, and the user is told.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bai_proto::runner::Record;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::child::Output;
use crate::lang::{Driver, Language};
use crate::outbox::Outbox;

/// Descriptors of the driver's pipes in the interpreter.
const COMMANDS: i32 = 3;
const EVENTS: i32 = 4;

/// The interpreter, its run and the user's input for it.
#[derive(Debug)]
pub struct Query {
    language: &'static Language,
    runtime_path: Option<String>,
    environ: BTreeMap<String, String>,
    outbox: Outbox,
    interpreter: Mutex<Option<Interpreter>>,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What other threads touch while a run goes on.
#[derive(Debug, Default)]
struct Shared {
    pid: Option<Pid>,
    is_running: bool,
    is_interrupted: bool,
    is_waiting: bool,
    input: VecDeque<String>,
    stdin: Option<ChildStdin>,
}

#[derive(Debug)]
struct Interpreter {
    child: Child,
    commands: File,
    events: File,
    output: Output,
    buffer: Vec<u8>,
}

impl Query {
    pub fn new(
        language: &'static Language,
        runtime_path: Option<String>,
        environ: BTreeMap<String, String>,
        outbox: Outbox,
    ) -> Self {
        Self {
            language,
            runtime_path,
            environ,
            outbox,
            interpreter: Mutex::new(None),
            shared: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_busy(&self) -> bool {
        self.shared().is_running
    }

    /// Starts the interpreter if the language has one.
    pub fn warm_up(&self) {
        let mut interpreter = self.interpreter.lock().unwrap_or_else(PoisonError::into_inner);
        if interpreter.is_none() && self.language.driver.is_some() {
            *interpreter = self.start().ok();
        }
    }

    /// Runs code and returns the exit code.
    pub fn run(&self, code: &str) -> i32 {
        let mut slot = self.interpreter.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            match self.start() {
                Ok(interpreter) => *slot = Some(interpreter),
                Err(error) => {
                    let name = self.language.log_name;
                    self.complain(&format!("{name}-kernel: query mode is not available: {error}\n"));
                    return 127;
                }
            }
        }
        let Some(interpreter) = slot.as_mut() else {
            return 127;
        };
        {
            let mut shared = self.shared();
            shared.is_running = true;
            shared.is_interrupted = false;
            shared.input.clear();
        }
        let ended = self
            .command(code)
            .and_then(|command| self.follow(interpreter, &command));
        self.shared().is_running = false;
        match ended {
            Ok(exit_code) => exit_code,
            Err(_) => {
                let exit_code = self.bury(slot.take());
                // The next run finds a fresh one.
                *slot = self.start().ok();
                exit_code
            }
        }
    }

    /// Names that continue the code, as a JSON array.
    pub fn complete(&self, request: &str) -> String {
        if self.language.driver != Some(Driver::Python) {
            return "[]".to_owned();
        }
        let request: Value = serde_json::from_str(request).unwrap_or_default();
        let mut slot = self.interpreter.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(interpreter) = slot.as_mut() else {
            return "[]".to_owned();
        };
        let asked = interpreter.tell(&json!({ "complete": request }).to_string());
        let answer = asked.and_then(|()| interpreter.next_event());
        match answer {
            Ok(event) if event["completions"].is_array() => event["completions"].to_string(),
            _ => "[]".to_owned(),
        }
    }

    /// What the user typed, for the run that waits for it or will.
    pub fn input(&self, text: String) {
        let mut shared = self.shared();
        if let (Some(Driver::Shell), Some(stdin)) = (self.language.driver, shared.stdin.as_mut()) {
            _ = stdin
                .write_all(text.as_bytes())
                .and_then(|()| stdin.write_all(b"\n"));
            return;
        }
        shared.input.push_back(text);
        self.changed.notify_all();
    }

    pub fn interrupt(&self) {
        let mut shared = self.shared();
        if !shared.is_running {
            return;
        }
        shared.is_interrupted = true;
        self.changed.notify_all();
        if let Some(pid) = shared.pid {
            // A driver that waits for input is told by the event loop; everything else by the signal.
            let target = if self.language.driver == Some(Driver::Shell) {
                Pid::from_raw(-pid.as_raw())
            } else {
                pid
            };
            if !shared.is_waiting {
                _ = kill(target, Signal::SIGINT);
            }
        }
    }

    fn complain(&self, text: &str) {
        self.outbox.send(&Record::Stderr(text.as_bytes().to_vec()));
    }

    /// The line that makes the driver run code.
    fn command(&self, code: &str) -> io::Result<String> {
        if self.language.driver != Some(Driver::Shell) {
            return Ok(json!({ "code": code }).to_string());
        }
        let cell = std::env::temp_dir().join("bai-cell.sh");
        std::fs::write(&cell, format!("{code}\n"))?;
        Ok(cell.display().to_string())
    }

    /// Follows a run to its end. An error means that the interpreter is gone.
    fn follow(&self, interpreter: &mut Interpreter, command: &str) -> io::Result<i32> {
        interpreter.output.begin_run();
        interpreter.tell(command)?;
        loop {
            let event = interpreter.next_event()?;
            // What was printed before the event comes before it.
            interpreter.output.drain();
            if let Some(done) = event.get("done") {
                return Ok(done
                    .as_i64()
                    .and_then(|code| i32::try_from(code).ok())
                    .unwrap_or(0));
            }
            if let Some(input) = event.get("input") {
                let is_password = input["password"].as_bool();
                self.outbox.send(&Record::WaitingInput { is_password });
                let answer = match self.wait_for_input() {
                    Some(text) => json!({ "input": text }),
                    None => json!({ "interrupt": true }),
                };
                interpreter.tell(&answer.to_string())?;
            } else if let Some(html) = event["html"].as_str() {
                self.outbox.send(&Record::Html(html.to_owned()));
            } else if let (Some(mime), Some(data)) = (event["media"][0].as_str(), event["media"][1].as_str())
            {
                self.outbox.send(&Record::Media {
                    mime: mime.to_owned(),
                    data: data.to_owned(),
                });
            }
        }
    }

    /// The next line of input; `None` when the run was interrupted.
    fn wait_for_input(&self) -> Option<String> {
        let mut shared = self.shared();
        shared.is_waiting = true;
        let text = loop {
            if shared.is_interrupted {
                shared.is_interrupted = false;
                break None;
            }
            if let Some(text) = shared.input.pop_front() {
                break Some(text);
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        };
        shared.is_waiting = false;
        text
    }

    /// Reports the end of an interpreter that died in a run.
    fn bury(&self, interpreter: Option<Interpreter>) -> i32 {
        let Some(mut interpreter) = interpreter else {
            return -1;
        };
        interpreter.output.drain();
        let status = interpreter.child.wait();
        let code = status.as_ref().ok().and_then(|status| status.code());
        let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
        let why = match (code, signal) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "is gone".to_owned(),
        };
        self.complain(&format!(
            "{}-kernel: the interpreter {why}; a new one starts.\n",
            self.language.log_name
        ));
        code.or_else(|| signal.map(|signal| 128 + signal)).unwrap_or(-1)
    }

    fn start(&self) -> io::Result<Interpreter> {
        let driver = self
            .language
            .driver
            .ok_or_else(|| io::Error::other("the language has none"))?;
        let runtime = self.runtime_path.as_deref().unwrap_or(self.language.runtime);
        let (command_end, commands) = io::pipe()?;
        let (events, event_end) = io::pipe()?;
        let mut command = Command::new(runtime);
        driver.arguments(&mut command);
        command.env_clear().envs(&self.environ).process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        pass_descriptors(&mut command, command_end.into(), event_end.into());
        let mut child = command.spawn()?;
        drop(command);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the interpreter has no output"));
        };
        let output = Output::new(stdout, stderr, self.outbox.clone())?;
        let mut shared = self.shared();
        shared.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
        shared.stdin = child.stdin.take();
        let (commands, events): (OwnedFd, OwnedFd) = (commands.into(), events.into());
        Ok(Interpreter {
            child,
            commands: commands.into(),
            events: events.into(),
            output,
            buffer: Vec::new(),
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

impl Interpreter {
    fn tell(&mut self, command: &str) -> io::Result<()> {
        self.commands.write_all(format!("{command}\n").as_bytes())
    }

    /// The next event of the driver; output is passed on meanwhile.
    fn next_event(&mut self) -> io::Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line).unwrap_or_default());
            }
            if !self.output.pump(Some(self.events.as_fd()), None)? {
                continue;
            }
            let mut chunk = [0; 64 << 10];
            match self.events.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
