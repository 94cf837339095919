//! The input hook: programs that bring a hook of their own ask for input at 127.0.0.1:65000 (`agent-protocol.md` 6.10).
//!
//! A program connects, the user is asked, what the user types is written as it is, and the connection is closed. Programs
//! that simply read their standard input need none of this ([`crate::stdin`]); images of 19.06 have libraries that do not.
//!
//! Invariants: there is a hook only where the session has a network of its own. On a shared one, the port would be the
//! first session's, and any process of the machine could ask its user or pose as it.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use bai_proto::runner::Record;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::control::{Control, MAX_INPUT};
use crate::outbox::Outbox;

const PORT: u16 = 65000;
/// What a caller is told when nobody can be asked.
const UNSUPPORTED: &[u8] = b"<user-input is unsupported>";
/// Milliseconds in which what a program printed before it asked overtakes the question.
const POLITENESS: u16 = 20;

/// Listens, on a thread of its own, until the session ends.
///
/// # Errors
/// When the port is taken, or there is no thread to be had.
pub fn start(outbox: Outbox, control: Control) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    thread::Builder::new().spawn(move || {
        for stream in listener.incoming().flatten() {
            take(stream, &outbox, &control);
        }
    })?;
    Ok(())
}

fn take(stream: TcpStream, outbox: &Outbox, control: &Control) {
    let Ok(caller) = Caller::new(stream) else { return };
    caller.wait(POLITENESS);
    match control.ask_for(caller) {
        Ok(true) => outbox.send(&Record::WaitingInput { is_password: None }),
        Ok(false) => {}
        Err(caller) => caller.write(UNSUPPORTED),
    }
}

/// A program that waits for an answer; dropping it ends its waiting.
#[derive(Debug)]
pub struct Caller(TcpStream);

impl Caller {
    fn new(stream: TcpStream) -> io::Result<Self> {
        // Room for any answer, so that writing it never waits.
        setsockopt(&stream, sockopt::SndBuf, &(2 * MAX_INPUT))?;
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// Waits, unless it hangs up or says something.
    fn wait(&self, milliseconds: u16) {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        _ = poll(&mut polled, milliseconds);
    }

    /// Answers and hangs up; false when the program is gone.
    pub fn answer(self, text: &str) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let is_there = match recv(self.0.as_raw_fd(), &mut [0], flags) {
            Ok(bytes) => bytes > 0,
            Err(error) => error == Errno::EAGAIN,
        };
        if is_there {
            self.write(text.as_bytes());
        }
        is_there
    }

    fn write(mut self, bytes: &[u8]) {
        // Who has gone meanwhile misses nothing.
        _ = self.0.write_all(bytes);
    }
}
