//! Query mode by a Jupyter kernel: runs, completions and questions as its protocol has them, and its death and replacement.
//!
//! The kernel starts with the session and is connected to when it is first needed (ADR 0016).
//!
//! Invariants: a run ends when the kernel has both answered and said that it is idle, or is gone; errors in the user's code
//! are output, and exit code 0; a kernel that dies is replaced, and the user is told; what a kernel says is bounded.
//!
//! * `spec`: which kernel; `kernel`: its process and sockets; `channel`: one socket; `message`: what is on it; `show`: what
//!   the user sees of it.

mod channel;
mod kernel;
mod message;
mod show;
mod spec;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bai_proto::runner::Record;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use self::channel::MAX_MESSAGE;
use self::kernel::{Connected, Heard, Kernel, Socket};
use self::message::Received;
use self::show::{show, show_value};
pub use self::spec::{Spec, find};
use crate::control::{self, Order, OrderBook, Orders, Run};
use crate::query::Parts;
use crate::scratch::Scratch;

/// How long a kernel may take to start, for a run and for a completion.
const START: Duration = Duration::from_secs(120);
const COMPLETION: Duration = Duration::from_secs(4);
/// Of the two signs of a run's end one may be lost (kernels drop what nobody reads in time): it is not waited for longer.
const STRAGGLER: Duration = Duration::from_secs(5);

/// The kernel of a session.
#[derive(Debug)]
pub struct Jupyter {
    parts: Parts,
    spec: Spec,
    scratch: Scratch,
    started: u32,
    kernel: Option<Kernel>,
}

/// What belongs to one run.
#[derive(Debug)]
struct Asking {
    orders: Orders,
    book: OrderBook,
    /// The last question of the kernel.
    question: Option<Received>,
}

impl Jupyter {
    /// Begins to start the kernel, before it is asked for.
    pub fn start(parts: Parts, spec: Spec) -> Self {
        let mut jupyter = Self {
            parts,
            spec,
            scratch: Scratch::default(),
            started: 0,
            kernel: None,
        };
        // A failure is told when somebody wants to run something.
        jupyter.kernel = jupyter.spawn().ok();
        jupyter
    }

    fn spawn(&mut self) -> io::Result<Kernel> {
        self.started += 1;
        Kernel::start(&self.spec, &self.parts, &self.scratch, self.started)
    }

    /// Passes on what background threads and processes print, until `wake` has something.
    pub fn idle_until(&mut self, wake: BorrowedFd<'_>) {
        while let Some(kernel) = self.kernel.as_mut().filter(|kernel| !kernel.has_ended()) {
            // One that is lost is about to end; it is replaced when it is needed.
            while let Ok(Some(heard)) = kernel.hear() {
                if let Heard::Published(message) = heard {
                    show(&message, kernel.output(), &self.parts.outbox);
                }
            }
            if is_ready(wake) || kernel.wait(&[wake], None).is_err() {
                return;
            }
        }
    }

    /// Runs code and returns the exit code.
    pub fn run(&mut self, code: &str) -> i32 {
        self.bury_the_dead();
        let asking = match Asking::new() {
            Ok(asking) => asking,
            Err(error) => return self.refuse(&error),
        };
        let mut kernel = match self.kernel.take().map_or_else(|| self.spawn(), Ok) {
            Ok(kernel) => kernel,
            Err(error) => return self.refuse(&error),
        };
        let code = self.run_by(&mut kernel, asking, code);
        self.parts.control.end();
        match code {
            Ok(code) => {
                self.kernel = Some(kernel);
                code
            }
            Err(Failure::Start(error)) => {
                let ended = kernel.has_ended();
                match kernel.bury(&self.parts) {
                    Ok(end) if ended => self.refuse(&format!("it {end}: {error}")),
                    _ => self.refuse(&error),
                }
            }
            Err(Failure::Run(error)) => {
                let code = self.bury(kernel, &error);
                self.kernel = self.spawn().ok();
                code
            }
        }
    }

    fn run_by(&self, kernel: &mut Kernel, mut asking: Asking, code: &str) -> Result<i32, Failure> {
        kernel.output().begin_run();
        // A kernel that is starting does not survive a signal.
        self.parts.control.begin(asking.run(None));
        match kernel.connect(&mut asking.book, START).map_err(Failure::Start)? {
            Connected::Ready => {}
            Connected::Interrupted => {
                self.parts.outbox.complain("KeyboardInterrupt\n");
                return Ok(0);
            }
        }
        let group = (!self.spec.is_interrupted_by_message).then(|| kernel.pid());
        self.parts.control.begin(asking.run(group));
        self.follow(kernel, &mut asking, code).map_err(Failure::Run)
    }

    /// Says that nothing can be run, and why.
    fn refuse(&self, why: &impl std::fmt::Display) -> i32 {
        let (language, kernel) = (self.parts.runtime.language.log_name, &self.spec.name);
        self.parts.outbox.complain(&format!(
            "{language}-kernel: query mode is not available, because the Jupyter kernel {kernel} does not start: {why}\n"
        ));
        127
    }

    /// Follows a run to its end. An error means that the kernel is gone or of no more use.
    fn follow(&self, kernel: &mut Kernel, asking: &mut Asking, code: &str) -> io::Result<i32> {
        let request = json!({
            "code": code, "silent": false, "store_history": true, "user_expressions": {},
            "allow_stdin": true, "stop_on_error": false,
        });
        let id = kernel.ask(Socket::Shell, "execute_request", &request)?;
        let (mut is_answered, mut is_idle) = (false, false);
        let mut last_heard = Instant::now();
        loop {
            while let Some(order) = asking.book.next() {
                asking.carry_out(order, kernel)?;
            }
            let had_ended = kernel.has_ended();
            if let Some(heard) = kernel.hear()? {
                last_heard = Instant::now();
                match heard {
                    Heard::Published(message) => {
                        is_idle |= message.parent == id && is_end(&message);
                        show(&message, kernel.output(), &self.parts.outbox);
                    }
                    Heard::Reply(reply) if reply.parent == id => {
                        is_answered = true;
                        self.show_page(&reply, kernel);
                    }
                    Heard::Reply(_) => {}
                    Heard::Question(question) => self.ask_user(question, kernel, asking),
                    Heard::TooMuch => self.parts.outbox.complain(&format!(
                        "\n[output of more than {} MiB at once left out]\n",
                        MAX_MESSAGE >> 20
                    )),
                }
            } else if is_answered && is_idle {
                return Ok(0);
            } else if had_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else if is_answered || is_idle {
                if last_heard.elapsed() >= STRAGGLER {
                    return Ok(0);
                }
                kernel.wait(&[asking.book.as_fd()], Some(STRAGGLER))?;
            } else {
                kernel.wait(&[asking.book.as_fd()], None)?;
            }
        }
    }

    /// What IPython would show in a pager, as for `print?`.
    fn show_page(&self, reply: &Received, kernel: &mut Kernel) {
        for payload in reply.content["payload"].as_array().into_iter().flatten() {
            if payload["source"] == "page" {
                let text = json!({"text/plain": payload["data"]["text/plain"]});
                _ = show_value(&text, "\n", kernel.output(), &self.parts.outbox);
            }
        }
    }

    fn ask_user(&self, question: Received, kernel: &mut Kernel, asking: &mut Asking) {
        if question.kind != "input_request" {
            return;
        }
        let prompt = json!({"text/plain": question.content["prompt"]});
        _ = show_value(&prompt, "", kernel.output(), &self.parts.outbox);
        let is_password = question.content["password"] == true;
        asking.question = Some(question);
        if !self.parts.control.ask(0) {
            let is_password = Some(is_password);
            self.parts.outbox.send(&Record::WaitingInput { is_password });
        }
    }

    /// Names that continue the text: whole dotted words, as the other ways give them.
    pub fn complete(&mut self, text: &str) -> Vec<String> {
        let Some(mut kernel) = self.kernel.take() else {
            return Vec::new();
        };
        let names = Asking::new().and_then(|mut asking| {
            self.parts.control.begin(asking.run(None));
            self.ask_for_names(&mut kernel, &mut asking, text)
        });
        self.parts.control.end();
        self.kernel = Some(kernel);
        // A kernel that is gone is buried by the next run.
        names.unwrap_or_default()
    }

    fn ask_for_names(&self, kernel: &mut Kernel, asking: &mut Asking, text: &str) -> io::Result<Vec<String>> {
        let deadline = Instant::now() + COMPLETION;
        if kernel.connect(&mut asking.book, COMPLETION)? == Connected::Interrupted {
            return Ok(Vec::new());
        }
        let request = json!({"code": text, "cursor_pos": text.chars().count()});
        let id = kernel.ask(Socket::Shell, "complete_request", &request)?;
        loop {
            let had_ended = kernel.has_ended();
            match kernel.hear()? {
                Some(Heard::Reply(reply)) if reply.parent == id => {
                    return Ok(whole_names(text, &reply.content));
                }
                Some(Heard::Published(message)) => show(&message, kernel.output(), &self.parts.outbox),
                Some(_) => {}
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if had_ended || left.is_zero() || asking.book.next() == Some(Order::Interrupt) {
                        return Ok(Vec::new());
                    }
                    kernel.wait(&[asking.book.as_fd()], Some(left))?;
                }
            }
        }
    }

    /// Tells the user about a kernel that died while nothing ran.
    fn bury_the_dead(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            // It may just have died.
            _ = kernel.wait(&[], Some(Duration::ZERO));
        }
        if let Some(kernel) = self.kernel.take_if(|kernel| kernel.is_gone()) {
            self.bury(kernel, &io::ErrorKind::UnexpectedEof.into());
        }
    }

    /// Reports the end of a kernel, with its exit code.
    fn bury(&self, kernel: Kernel, error: &io::Error) -> i32 {
        let (language, name) = (self.parts.runtime.language.log_name, &self.spec.name);
        let is_broken = error.kind() == io::ErrorKind::InvalidData;
        match kernel.bury(&self.parts) {
            Ok(end) => {
                let why = match is_broken {
                    true => format!("was ended: {error}"),
                    false => end.to_string(),
                };
                self.parts.outbox.complain(&format!(
                    "{language}-kernel: the Jupyter kernel {name} {why}; a new one starts, without its variables.\n"
                ));
                end.code()
            }
            Err(error) => {
                self.parts.outbox.complain(&format!(
                    "{language}-kernel: the Jupyter kernel {name} is lost: {error}\n"
                ));
                -1
            }
        }
    }
}

/// Where a run failed.
#[derive(Debug)]
enum Failure {
    Start(io::Error),
    Run(io::Error),
}

impl Asking {
    fn new() -> io::Result<Self> {
        let (orders, book) = control::orders()?;
        Ok(Self {
            orders,
            book,
            question: None,
        })
    }

    fn run(&self, group: Option<nix::unistd::Pid>) -> Run {
        Run::Kernel {
            group,
            orders: self.orders.clone(),
            is_asking: false,
        }
    }

    fn carry_out(&mut self, order: Order, kernel: &mut Kernel) -> io::Result<()> {
        match (order, self.question.take()) {
            (Order::Answer(text), Some(question)) => kernel.answer(&question, &text),
            (Order::Answer(_), None) => Ok(()),
            (Order::Interrupt, question) => {
                self.question = question;
                kernel
                    .ask(Socket::Control, "interrupt_request", &json!({}))
                    .map(drop)
            }
        }
    }
}

fn is_end(message: &Received) -> bool {
    message.kind == "status" && message.content["execution_state"] == "idle"
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Kernels replace different parts of what is before the cursor.
fn whole_names(text: &str, reply: &Value) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let is_of_word = |character: &&char| character.is_alphanumeric() || ['_', '.'].contains(*character);
    let word = characters.iter().rev().take_while(is_of_word).count();
    let start = reply["cursor_start"]
        .as_u64()
        .and_then(|start| usize::try_from(start).ok());
    let kept = characters
        .get(characters.len() - word..start.unwrap_or_default())
        .unwrap_or_default();
    let kept: String = kept.iter().collect();
    let matches = reply["matches"].as_array().into_iter().flatten();
    matches
        .filter_map(Value::as_str)
        .map(|name| format!("{kept}{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_whatever_a_kernel_replaces() {
        for (text, start, name, expected) in [
            ("import os\nos.pa", 13, "path", "os.path"),
            ("x = os.pa", 4, "os.path", "os.path"),
            ("prin", 0, "print", "print"),
            ("한 = é.x", 6, "xyz", "é.xyz"),
            ("%ti", 0, "%time", "%time"),
            ("a", 99, "abc", "abc"),
        ] {
            let reply = json!({"matches": [name, 5], "cursor_start": start});
            assert_eq!(whole_names(text, &reply), [expected], "{text}");
        }
        assert!(whole_names("x", &json!([])).is_empty());
    }
}
