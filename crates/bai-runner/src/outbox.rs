//! Records on their way to the agent, across agents that die and come back.
//!
//! Invariants:
//! - records leave in the order in which they were sent;
//! - what no agent has read goes to the next one. A socket keeps what its reader has not taken and throws it away when the
//!   reader dies, so records stay here until they are known to be read. Records that a dying agent had read may arrive
//!   twice, never not at all;
//! - at most [`MAX_BYTES`] or [`MAX_RECORDS`] wait; then whoever prints waits too, so that a program that prints without
//!   end is stopped by its own pipe and not by our memory;
//! - no frame is larger than an agent accepts.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bai_proto::runner::{MAX_RECORD, Record};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

/// Bytes of records that may wait.
const MAX_BYTES: usize = 16 << 20;
/// Records that may wait.
const MAX_RECORDS: usize = 4096;

/// Shared by everybody who has something to say.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Encoded records; the first `written` of them have been written to the agent, which may not have read them.
    records: VecDeque<Arc<[u8]>>,
    bytes: usize,
    written: usize,
    written_bytes: usize,
    /// Bytes of the record after those that have been written too.
    partly: usize,
    agent: Option<Agent>,
}

#[derive(Clone, Debug)]
struct Agent {
    stream: Arc<UnixStream>,
    /// Nothing more can be written; how much was read is known when its reader has ended.
    has_failed: bool,
    /// The system threw away what it had not read.
    was_reset: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a record; waits while too much is queued.
    pub fn send(&self, record: &Record) {
        let bytes = encode(record);
        let mut state = self.lock();
        while state.bytes > MAX_BYTES || state.records.len() >= MAX_RECORDS {
            state = self.wait(state);
        }
        self.queue(state, bytes);
    }

    /// Queues a record without ever waiting: the thread that hears the agent must stay responsive. An agent that asks and
    /// asks and never listens gets no answer.
    pub fn answer(&self, record: &Record) {
        let state = self.lock();
        if state.bytes <= 2 * MAX_BYTES && state.records.len() < 2 * MAX_RECORDS {
            self.queue(state, encode(record));
        }
    }

    /// Queues what we ourselves have to say to the user.
    pub fn complain(&self, text: &str) {
        self.send(&Record::Stderr(text.as_bytes().to_vec()));
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, bytes: Arc<[u8]>) {
        state.bytes += bytes.len();
        state.records.push_back(bytes);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Takes a new agent. The one before must be gone: see [`Outbox::cut_off`].
    pub fn connect(&self, stream: UnixStream) {
        let mut state = self.lock();
        state.write_again();
        state.agent = Some(Agent {
            stream: Arc::new(stream),
            has_failed: false,
            was_reset: false,
        });
        drop(state);
        self.0.changed.notify_all();
    }

    /// Ends the connection of the present agent, unless it has ended it itself: then its reader will tell how.
    pub fn cut_off(&self) {
        let mut state = self.lock();
        if let Some(agent) = &state.agent
            && !has_hung_up(&agent.stream)
        {
            let stream = agent.stream.clone();
            state.settle(&stream);
            state.write_again();
            state.agent = None;
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The present agent is gone, as its reader has noticed; `was_reset` if the system says that it left something unread.
    pub fn disconnect(&self, was_reset: bool) {
        let mut state = self.lock();
        if let Some(agent) = state.agent.take() {
            _ = agent.stream.shutdown(Shutdown::Both);
            if !was_reset && !agent.was_reset {
                for _ in 0..state.written {
                    state.forget_first();
                }
            }
            state.write_again();
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Writes records to the agent, for ever. Never waits while it writes: what was written is known whenever somebody else
    /// looks.
    pub fn deliver(&self) {
        let mut state = self.lock();
        loop {
            let next = state.agent.as_ref().filter(|agent| !agent.has_failed);
            let next = next.map(|agent| agent.stream.clone());
            let (Some(stream), Some(record)) = (next, state.records.get(state.written).cloned()) else {
                state = self.wait(state);
                continue;
            };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(stream.as_raw_fd(), &record[state.partly..], flags) {
                Ok(count) if state.partly + count < record.len() => state.partly += count,
                Ok(_) => {
                    state.partly = 0;
                    state.written += 1;
                    state.written_bytes += record.len();
                    state.settle(&stream);
                    self.0.changed.notify_all();
                }
                Err(Errno::EAGAIN) => {
                    drop(state);
                    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                    // Whatever it says, the next attempt to write tells more.
                    _ = poll(&mut polled, PollTimeout::NONE);
                    state = self.lock();
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    if let Some(agent) = &mut state.agent {
                        agent.has_failed = true;
                        agent.was_reset |= error == Errno::ECONNRESET;
                    }
                    // Its reader ends, and tells how it went.
                    _ = stream.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

impl State {
    /// Forgets what the agent has certainly read: all but the newest records that the socket may still hold.
    fn settle(&mut self, stream: &UnixStream) {
        let unread = unread(stream);
        while self.written > 0 && self.written_bytes - self.records[0].len() >= unread {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.bytes -= record.len();
            self.written -= 1;
            self.written_bytes -= record.len();
        }
    }

    fn write_again(&mut self) {
        (self.written, self.written_bytes, self.partly) = (0, 0, 0);
    }
}

/// The frame of a record, cut or replaced if it is larger than an agent takes.
fn encode(record: &Record) -> Arc<[u8]> {
    let frame = record.to_frame();
    if frame.data.len() <= MAX_RECORD {
        return frame.encode().into();
    }
    let record = match record {
        Record::Completion(_) => Record::Completion("[]".to_owned()),
        _ => Record::Stderr(
            format!(
                "\n[{} of {} MiB left out: the most is {} MiB]\n",
                frame.kind,
                frame.data.len() >> 20,
                MAX_RECORD >> 20
            )
            .into_bytes(),
        ),
    };
    record.to_frame().encode().into()
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

nix::ioctl_read_bad!(
    /// Bytes of memory that the socket holds for its reader.
    outq,
    libc::TIOCOUTQ,
    libc::c_int
);

/// An upper limit of the bytes that the other side has not read yet.
#[expect(unsafe_code, reason = "an ioctl that only this kind of socket answers")]
fn unread(stream: &UnixStream) -> usize {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and this request writes one integer to where the pointer says.
    let asked = unsafe { outq(stream.as_raw_fd(), &raw mut bytes) };
    asked
        .ok()
        .and_then(|_| usize::try_from(bytes).ok())
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use bai_proto::runner::Frame;

    use super::*;

    fn started() -> Outbox {
        let outbox = Outbox::default();
        let writer = outbox.clone();
        thread::spawn(move || writer.deliver());
        outbox
    }

    fn agent(outbox: &Outbox) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        outbox.connect(ours);
        theirs
    }

    fn next(stream: &mut UnixStream) -> Record {
        Record::from_frame(Frame::read_from(stream).expect("a frame").expect("not the end"))
    }

    fn line(number: usize) -> Record {
        Record::Stdout(format!("{number}\n").into_bytes())
    }

    #[test]
    fn an_agent_that_comes_late_hears_everything() {
        let outbox = started();
        for number in 0..100 {
            outbox.send(&line(number));
        }
        let mut agent = agent(&outbox);
        for number in 0..100 {
            assert_eq!(next(&mut agent), line(number));
        }
    }

    #[test]
    fn what_a_dead_agent_had_not_read_goes_to_the_next() {
        let outbox = started();
        let mut first = agent(&outbox);
        for number in 0..50 {
            outbox.send(&line(number));
        }
        for number in 0..20 {
            assert_eq!(next(&mut first), line(number));
        }
        drop(first);
        outbox.disconnect(true);
        outbox.send(&line(50));
        let mut second = agent(&outbox);
        let Record::Stdout(bytes) = next(&mut second) else {
            panic!("output is expected")
        };
        let first: usize = String::from_utf8_lossy(&bytes).trim().parse().expect("a number");
        assert!(first <= 20, "nothing is lost, but {first} came first");
        for number in first + 1..=50 {
            assert_eq!(next(&mut second), line(number));
        }
    }

    #[test]
    fn an_agent_that_read_everything_leaves_nothing_behind() {
        let outbox = started();
        let mut first = agent(&outbox);
        outbox.send(&line(1));
        assert_eq!(next(&mut first), line(1));
        drop(first);
        outbox.disconnect(false);
        let mut second = agent(&outbox);
        outbox.send(&line(2));
        assert_eq!(next(&mut second), line(2));
    }

    #[test]
    fn what_an_agent_has_read_is_not_said_again_to_the_one_that_replaces_it() {
        for number in 0..200 {
            let outbox = started();
            let mut first = agent(&outbox);
            outbox.send(&line(number));
            assert_eq!(next(&mut first), line(number));
            // At once: the writer may not have come further than writing.
            outbox.cut_off();
            let mut second = agent(&outbox);
            outbox.send(&Record::Log("next".into()));
            assert_eq!(next(&mut second), Record::Log("next".into()));
        }
    }

    #[test]
    fn an_agent_that_does_not_read_is_replaced_and_nothing_is_lost() {
        let outbox = started();
        let mut first = agent(&outbox);
        let long = Record::Stdout(vec![b'x'; 8 << 20]);
        outbox.send(&line(1));
        outbox.send(&long);
        outbox.send(&line(2));
        assert_eq!(next(&mut first), line(1));
        // The writer is stuck in the long record now.
        outbox.cut_off();
        let mut second = agent(&outbox);
        let mut heard = next(&mut second);
        if heard == line(1) {
            heard = next(&mut second);
        }
        assert!(heard == long);
        assert_eq!(next(&mut second), line(2));
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).expect("cut off");
    }

    #[test]
    fn media_that_no_agent_takes_is_explained() {
        let outbox = started();
        let data = "x".repeat(MAX_RECORD);
        outbox.send(&Record::Media {
            mime: "image/png".into(),
            data,
        });
        match next(&mut agent(&outbox)) {
            Record::Stderr(text) => assert!(String::from_utf8_lossy(&text).contains("media of 10 MiB")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn printers_wait_and_answers_do_not() {
        let outbox = started();
        for number in 0..MAX_RECORDS {
            outbox.send(&line(number));
        }
        outbox.answer(&Record::Log("here".into()));
        let printer = outbox.clone();
        let blocked = thread::spawn(move || printer.send(&line(MAX_RECORDS)));
        let mut agent = agent(&outbox);
        for number in 0..MAX_RECORDS {
            assert_eq!(next(&mut agent), line(number));
        }
        assert_eq!(next(&mut agent), Record::Log("here".into()));
        assert_eq!(next(&mut agent), line(MAX_RECORDS));
        blocked.join().expect("it was let through");
    }
}
