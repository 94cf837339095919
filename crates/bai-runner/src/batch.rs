//! Batch mode: clean, build and exec steps, each a command of its own (`agent-protocol.md` 6.4, 6.11); and query mode of
//! the languages without an interpreter that stays, which is a batch of one file.
//!
//! Exit codes: a program's own; 128 and the signal's number when it was killed, as shells count; 127 when what is to be
//! run does not exist; -1 when the step itself failed.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use bai_proto::runner::Record;

use crate::command;
use crate::control::{Control, Run};
use crate::lang::{Query, Runtime};
use crate::outbox::Outbox;
use crate::process::{End, Process};
use crate::scratch::Scratch;
use crate::stdin::{Awaited, Stdin};
use crate::strays::Strays;

/// Runs commands one at a time.
#[derive(Debug)]
pub struct Batch {
    runtime: Arc<Runtime>,
    outbox: Outbox,
    control: Control,
    strays: Strays,
    scratch: Scratch,
}

impl Batch {
    pub fn new(runtime: Arc<Runtime>, outbox: Outbox, control: Control, strays: Strays) -> Self {
        Self {
            runtime,
            outbox,
            control,
            strays,
            scratch: Scratch::default(),
        }
    }

    /// The clean step; `*` runs `make clean` where there is a makefile and the language has one.
    pub fn clean(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" if self.runtime.language.cleans_with_make && exists("Makefile") => self.shell("make clean"),
            "*" => 0,
            command => self.shell(command),
        }
    }

    /// The build step; `*` is `make` where there is a makefile, else the language's own way.
    pub fn build(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" if exists("Makefile") => self.shell("make"),
            "*" => self.default_step(self.runtime.language.build),
            command => self.shell(command),
        }
    }

    /// The exec step.
    pub fn exec(&self, command: &str) -> i32 {
        match command {
            "" => 0,
            "*" => match self.runtime.language.main_file {
                Some(file) if !exists(file) => {
                    let name = self.runtime.language.log_name;
                    self.outbox.complain(&format!(
                        "{name}-kernel: cannot find the main script (\"{file}\").\n"
                    ));
                    127
                }
                _ => self.default_step(self.runtime.language.exec),
            },
            command => self.shell(command),
        }
    }

    /// Query mode by a file; 127 when the language has no such way.
    pub fn query_by_file(&self, code: &str) -> i32 {
        let Query::File {
            name,
            prefix,
            command,
        } = self.runtime.language.query
        else {
            return 127;
        };
        match self.scratch.write(name, &format!("{prefix}{code}")) {
            Ok(file) => {
                let folder = quoted(&self.scratch.path().display().to_string());
                let file = quoted(&file.display().to_string());
                self.default_step(Some(&format!("D={folder}; F={file}; {command}")))
            }
            Err(error) => {
                self.outbox
                    .complain(&format!("the code cannot be written to a file: {error}\n"));
                -1
            }
        }
    }

    fn default_step(&self, command: Option<&str>) -> i32 {
        let Some(command) = command else { return 0 };
        let runtime = &self.runtime.path;
        let path = match Path::new(runtime).parent().and_then(Path::to_str) {
            None | Some("") => String::new(),
            Some(folder) => format!("PATH={}:$PATH; ", quoted(folder)),
        };
        self.shell(&format!("R={}; {path}{command}", quoted(runtime)))
    }

    fn shell(&self, command: &str) -> i32 {
        match self.try_shell(command) {
            Ok(end) => end.code(),
            Err(error) => {
                self.outbox
                    .complain(&format!("the command could not be run: {error}\n"));
                match error.kind() {
                    io::ErrorKind::NotFound => 127,
                    _ => -1,
                }
            }
        }
    }

    fn try_shell(&self, command: &str) -> io::Result<End> {
        let mut command = command::of(command)?;
        command
            .env_clear()
            .envs(&self.runtime.environ)
            .stdin(Stdio::piped());
        let (mut process, stdin) = Process::spawn(&mut command, self.outbox.clone())?;
        let followed = match stdin {
            Some(stdin) => Stdin::new(stdin).and_then(|stdin| {
                let stdin = Arc::new(Mutex::new(stdin));
                self.control.begin(Run::Program {
                    group: process.pid(),
                    stdin: stdin.clone(),
                });
                self.follow(&mut process, &stdin)
            }),
            None => Ok(()),
        };
        self.control.end();
        let end = process.bury(&self.strays)?;
        followed.map(|()| end)
    }

    /// Passes output on until the process has ended.
    fn follow(&self, process: &mut Process, stdin: &Mutex<Stdin>) -> io::Result<()> {
        let mut awaited = Awaited::default();
        while !process.has_ended() {
            let seen = process.pump(&[], Some(awaited.pause()))?;
            let lock = || stdin.lock().unwrap_or_else(PoisonError::into_inner);
            if awaited.begins(seen.output, lock) {
                self.outbox.send(&Record::WaitingInput { is_password: None });
            }
        }
        Ok(())
    }
}

fn exists(file: &str) -> bool {
    Path::new(file).exists()
}

/// A word of a shell command.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
