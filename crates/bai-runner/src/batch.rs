//! Batch mode: clean, build and exec steps, each a command of its own (`agent-protocol.md` 6.4, 6.11); and query mode of
//! the compiled and other languages without an interpreter that stays, which is a batch of one file.
//!
//! Exit codes: a program's own; 128 and the signal's number when it was killed, as shells count.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bai_proto::runner::Record;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::child::Output;
use crate::lang::Language;
use crate::outbox::Outbox;

/// How often a running command is asked whether it has ended, while background processes keep its pipes open.
const EXIT_POLL_MILLISECONDS: u16 = 20;

/// Runs commands one at a time.
#[derive(Debug)]
pub struct Batch {
    language: &'static Language,
    runtime_path: Option<String>,
    environ: BTreeMap<String, String>,
    outbox: Outbox,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    group: Pid,
    stdin: Option<ChildStdin>,
}

impl Batch {
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
            running: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_busy(&self) -> bool {
        self.lock().is_some()
    }

    /// The clean step; `*` runs `make clean` where there is a makefile and the language has one.
    pub fn clean(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" if self.language.cleans_with_make && has("Makefile") => self.shell("make clean"),
            "*" => 0,
            command => self.shell(command),
        }
    }

    /// The build step; `*` is `make` where there is a makefile, else the language's own way.
    pub fn build(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" if has("Makefile") => self.shell("make"),
            "*" => self.default_step(self.language.build),
            command => self.shell(command),
        }
    }

    /// The exec step.
    pub fn exec(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" => match self.language.main_file {
                Some(file) if !has(file) => {
                    let name = self.language.log_name;
                    self.complain(&format!(
                        "{name}-kernel: cannot find the main script (\"{file}\").\n"
                    ));
                    127
                }
                _ => self.default_step(self.language.exec),
            },
            command => self.shell(command),
        }
    }

    /// Query mode by a temporary file; `None` when the language has an interpreter that stays.
    pub fn query_by_file(&self, code: &str) -> Option<i32> {
        let (file, command) = self.language.query_file?;
        let folder = std::env::temp_dir().join("bai-query");
        let path = folder.join(file);
        let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, code));
        if let Err(error) = written {
            self.complain(&format!("cannot write the code: {error}\n"));
            return Some(-1);
        }
        let command = format!("D='{}'; F='{}'; {command}", folder.display(), path.display());
        Some(self.default_step(Some(&command)))
    }

    fn default_step(&self, command: Option<&str>) -> i32 {
        let Some(command) = command else { return 0 };
        let runtime = self.runtime_path.as_deref().unwrap_or(self.language.runtime);
        self.shell(&format!("R='{runtime}'; {command}"))
    }

    fn complain(&self, text: &str) {
        self.outbox.send(&Record::Stderr(text.as_bytes().to_vec()));
    }

    fn shell(&self, command: &str) -> i32 {
        match self.try_shell(command) {
            Ok(status) => status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .unwrap_or(-1),
            Err(error) => {
                self.complain(&format!("the command could not be run: {error}\n"));
                -1
            }
        }
    }

    fn try_shell(&self, command: &str) -> std::io::Result<ExitStatus> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .env_clear()
            .envs(&self.environ)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        *self.lock() = Some(Running {
            group,
            stdin: child.stdin.take(),
        });
        let status = self.follow(&mut child);
        *self.lock() = None;
        status
    }

    /// Passes output on until the child has ended and its pipes are empty.
    fn follow(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return child.wait();
        };
        let mut output = Output::new(stdout, stderr, self.outbox.clone())?;
        while !output.has_ended() {
            output.pump(None, Some(EXIT_POLL_MILLISECONDS))?;
            if let Some(status) = child.try_wait()? {
                // What background processes print from now on belongs to no run.
                output.drain();
                return Ok(status);
            }
        }
        child.wait()
    }

    /// Gives a line to the running command; false when there is none.
    pub fn input(&self, text: &str) -> bool {
        let mut running = self.lock();
        let Some(running) = running.as_mut() else {
            return false;
        };
        if let Some(stdin) = &mut running.stdin {
            let newline: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
            // A program that does not read has closed its end; that is its choice.
            _ = stdin
                .write_all(text.as_bytes())
                .and_then(|()| stdin.write_all(newline));
        }
        true
    }

    pub fn interrupt(&self) {
        if let Some(running) = self.lock().as_ref() {
            _ = killpg(running.group, Signal::SIGINT);
        }
    }
}

fn has(file: &str) -> bool {
    std::path::Path::new(file).exists()
}
