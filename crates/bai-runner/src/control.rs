//! What the threads that hear the agent may do to the run that goes on: give it input and interrupt it.
//!
//! Invariants: nothing here waits; input that comes before a run asks for it is kept for its next question and forgotten
//! at its end; without a run, input and interrupts mean nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::stdin::Stdin;

/// Bytes of one input. An answer must fit into the pipe to the interpreter, so that writing it never waits.
const MAX_INPUT: usize = 32 << 10;
/// Inputs kept for questions to come.
const MAX_TYPED: usize = 64;

/// Shared by the worker and those who hear the agent.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    typed: VecDeque<String>,
}

/// How to reach what runs.
#[derive(Debug)]
pub enum Run {
    /// A process group that reads its standard input.
    Program { group: Pid, stdin: Arc<Mutex<Stdin>> },
    /// An interpreter that asks questions, each with a number, and is answered on its commands.
    Interpreter {
        group: Pid,
        commands: Arc<File>,
        question: Option<u64>,
    },
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, run: Run) {
        self.lock().run = Some(run);
    }

    pub fn end(&self) {
        let mut state = self.lock();
        state.run = None;
        state.typed.clear();
    }

    pub fn is_busy(&self) -> bool {
        self.lock().run.is_some()
    }

    /// What the user typed. Refused with the reason.
    pub fn input(&self, text: String) -> Result<(), &'static str> {
        if text.len() > MAX_INPUT {
            return Err("[input of more than 32 KiB refused]\n");
        }
        let mut state = self.lock();
        match &mut state.run {
            None => Ok(()),
            Some(Run::Program { stdin, .. }) => {
                let mut stdin = stdin.lock().unwrap_or_else(PoisonError::into_inner);
                match stdin.type_line(&text) {
                    true => Ok(()),
                    false => Err("[input dropped: the program does not read it]\n"),
                }
            }
            Some(Run::Interpreter {
                commands, question, ..
            }) => {
                if let Some(number) = question.take() {
                    answer(commands, number, &text);
                } else if state.typed.len() < MAX_TYPED {
                    state.typed.push_back(text);
                } else {
                    return Err("[input dropped: nothing asks for it]\n");
                }
                Ok(())
            }
        }
    }

    /// The interpreter asks; false when it must wait for the user.
    pub fn ask(&self, number: u64) -> bool {
        let mut state = self.lock();
        let typed = state.typed.pop_front();
        let Some(Run::Interpreter {
            commands, question, ..
        }) = &mut state.run
        else {
            return false;
        };
        match typed {
            Some(text) => answer(commands, number, &text),
            None => {
                *question = Some(number);
                return false;
            }
        }
        true
    }

    pub fn interrupt(&self) {
        // The whole group, as a terminal does: who waits for a child with the signal ignored would not notice.
        if let Some(Run::Program { group, .. } | Run::Interpreter { group, .. }) = &self.lock().run {
            _ = killpg(*group, Signal::SIGINT);
        }
    }
}

/// An interpreter that is gone hears nothing; the worker finds out.
fn answer(mut commands: &File, number: u64, text: &str) {
    _ = commands.write_all(format!("input {number} {}\n{text}", text.len()).as_bytes());
}
