//! What the threads that hear the agent may do to the run that goes on: give it input and interrupt it.
//!
//! Invariants: nothing here waits; input that comes before a run asks for it is kept for its next question and forgotten
//! at its end; without a run, input and interrupts mean nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::hook::Caller;
use crate::stdin::Stdin;

/// Bytes of one input. An answer must fit into the pipe to the interpreter, so that writing it never waits.
pub const MAX_INPUT: usize = 32 << 10;
/// Inputs kept for questions to come.
const MAX_TYPED: usize = 64;
/// Callers of the hook that wait at a time.
const MAX_CALLERS: usize = 16;
/// Orders that wait for the worker.
const MAX_ORDERS: usize = 64;

/// Shared by the worker and those who hear the agent.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    typed: VecDeque<String>,
    /// Programs that asked through the hook, in their order.
    callers: VecDeque<Caller>,
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
    /// A Jupyter kernel, with which only the worker talks. Without a group it is not to be sent a signal.
    Kernel {
        group: Option<Pid>,
        orders: Orders,
        is_asking: bool,
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
        state.callers.clear();
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
        while let Some(caller) = state.callers.pop_front() {
            if caller.answer(&text) {
                return Ok(());
            }
        }
        let is_kept = match &mut state.run {
            None => return Ok(()),
            Some(Run::Program { stdin, .. }) => {
                let mut stdin = stdin.lock().unwrap_or_else(PoisonError::into_inner);
                return match stdin.type_line(&text) {
                    true => Ok(()),
                    false => Err("[input dropped: the program does not read it]\n"),
                };
            }
            Some(Run::Interpreter {
                commands, question, ..
            }) => match question.take() {
                Some(number) => {
                    answer(commands, number, &text);
                    return Ok(());
                }
                None => state.typed.len() < MAX_TYPED,
            },
            Some(Run::Kernel {
                orders, is_asking, ..
            }) => match std::mem::take(is_asking) {
                true => {
                    orders.give(Order::Answer(text));
                    return Ok(());
                }
                false => state.typed.len() < MAX_TYPED,
            },
        };
        if !is_kept {
            return Err("[input dropped: nothing asks for it]\n");
        }
        state.typed.push_back(text);
        Ok(())
    }

    /// The interpreter or kernel asks; false when it must wait for the user. Only an interpreter numbers its questions.
    pub fn ask(&self, number: u64) -> bool {
        let mut state = self.lock();
        let typed = state.typed.pop_front();
        match (&mut state.run, typed) {
            (Some(Run::Interpreter { commands, .. }), Some(text)) => answer(commands, number, &text),
            (Some(Run::Kernel { orders, .. }), Some(text)) => orders.give(Order::Answer(text)),
            (Some(Run::Interpreter { question, .. }), None) => {
                *question = Some(number);
                return false;
            }
            (Some(Run::Kernel { is_asking, .. }), None) => {
                *is_asking = true;
                return false;
            }
            (Some(Run::Program { .. }) | None, _) => return false,
        }
        true
    }

    /// A program asks through the hook. Whether the user is to be told, or nothing to be done any more; the caller comes
    /// back when there is nobody to ask.
    pub fn ask_for(&self, caller: Caller) -> Result<bool, Caller> {
        let mut state = self.lock();
        if state.run.is_none() || state.callers.len() >= MAX_CALLERS {
            return Err(caller);
        }
        match state.typed.pop_front() {
            Some(text) => {
                caller.answer(&text);
                Ok(false)
            }
            None => {
                state.callers.push_back(caller);
                Ok(true)
            }
        }
    }

    pub fn interrupt(&self) {
        let group = match &self.lock().run {
            None => return,
            Some(Run::Program { group, .. } | Run::Interpreter { group, .. }) => *group,
            Some(Run::Kernel { group, orders, .. }) => match group {
                Some(group) => *group,
                None => return orders.give(Order::Interrupt),
            },
        };
        // The whole group, as a terminal does: who waits for a child with the signal ignored would not notice.
        _ = killpg(group, Signal::SIGINT);
    }
}

/// An interpreter that is gone hears nothing; the worker finds out.
fn answer(mut commands: &File, number: u64, text: &str) {
    _ = commands.write_all(format!("input {number} {}\n{text}", text.len()).as_bytes());
}

/// What the worker is to tell a kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    Answer(String),
    Interrupt,
}

/// Gives orders to the worker.
#[derive(Clone, Debug)]
pub struct Orders {
    queue: mpsc::SyncSender<Order>,
    waker: Arc<PipeWriter>,
}

/// The worker's end of [`Orders`].
#[derive(Debug)]
pub struct OrderBook {
    queue: mpsc::Receiver<Order>,
    wake: PipeReader,
}

/// # Errors
/// When there is no pipe to be had.
pub fn orders() -> io::Result<(Orders, OrderBook)> {
    let (sender, receiver) = mpsc::sync_channel(MAX_ORDERS);
    let (wake, waker) = io::pipe()?;
    let waker = Arc::new(waker);
    Ok((
        Orders { queue: sender, waker },
        OrderBook {
            queue: receiver,
            wake,
        },
    ))
}

impl Orders {
    /// More interrupts than anybody carries out are dropped.
    fn give(&self, order: Order) {
        if self.queue.try_send(order).is_ok() {
            // One byte for each order: there is always room.
            _ = (&*self.waker).write_all(&[0]);
        }
    }
}

impl OrderBook {
    /// Readable when there is an order.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn next(&mut self) -> Option<Order> {
        let order = self.queue.try_recv().ok()?;
        // Written right after the order.
        _ = self.wake.read(&mut [0]);
        Some(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_answered_by_what_was_typed_before_and_after() {
        let (orders, mut book) = orders().expect("a pipe");
        let control = Control::default();
        assert!(!control.ask(0), "nothing runs");
        control.begin(Run::Kernel {
            group: None,
            orders,
            is_asking: false,
        });
        control.input("early".into()).expect("kept");
        assert!(control.ask(0), "answered at once");
        assert!(!control.ask(0), "the user has to be asked");
        control.input("late".into()).expect("taken");
        assert_eq!(book.next(), Some(Order::Answer("early".into())));
        assert_eq!(book.next(), Some(Order::Answer("late".into())));
        for _ in 0..2 * MAX_ORDERS {
            control.interrupt();
        }
        assert_eq!(std::iter::from_fn(|| book.next()).count(), MAX_ORDERS);
        for _ in 0..MAX_TYPED {
            control.input("too early".into()).expect("kept");
        }
        assert!(control.input("too much".into()).is_err());
        control.end();
        assert!(!control.ask(0), "forgotten");
    }
}
