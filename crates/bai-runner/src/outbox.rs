//! Records on their way to the agent.
//!
//! Invariants: records leave in the order in which they were sent; while no agent is connected they wait, up to
//! [`MAX_WAITING`] bytes, and then whoever sends waits too, so that a program that prints without end is stopped by its
//! own pipe and not by our memory. A record that was being written when an agent went away is written to the next one.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bai_proto::runner::Record;

/// Bytes of records that may wait.
const MAX_WAITING: usize = 16 << 20;

/// Shared by everybody who sends.
#[derive(Clone, Debug)]
pub struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    agent: Option<Arc<UnixStream>>,
}

impl Outbox {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a record; waits while too much is queued.
    pub fn send(&self, record: &Record) {
        let bytes = record.to_frame().encode();
        let mut state = self.lock();
        while state.bytes > MAX_WAITING {
            state = self.wait(state);
        }
        state.bytes += bytes.len();
        state.waiting.push_back(bytes);
        self.0.changed.notify_all();
    }

    /// Takes a new agent; the one before is cut off.
    pub fn connect(&self, agent: UnixStream) {
        let mut state = self.lock();
        if let Some(old) = state.agent.replace(Arc::new(agent)) {
            _ = old.shutdown(std::net::Shutdown::Both);
        }
        self.0.changed.notify_all();
    }

    /// Writes records to the agent, for ever.
    pub fn deliver(&self) {
        loop {
            let mut state = self.lock();
            let (agent, record) = loop {
                if let (Some(agent), Some(record)) = (&state.agent, state.waiting.front()) {
                    break (agent.clone(), record.clone());
                }
                state = self.wait(state);
            };
            drop(state);
            let written = (&*agent).write_all(&record);
            let mut state = self.lock();
            if written.is_ok() {
                state.waiting.pop_front();
                state.bytes -= record.len();
                self.0.changed.notify_all();
            } else if state
                .agent
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, &agent))
            {
                state.agent = None;
            }
        }
    }
}
