//! Gives the agent descriptors from inside the session (`bai_proto::descriptor`): what goes through them then passes
//! between the agent and the program, and not through here.
//!
//! Invariants: one request after another, by a thread of its own; none waits for a program of the session; a peer that
//! says nothing is given up.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use bai_proto::descriptor::{Descriptor, HERE, REFUSED};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

use crate::terminal::Terminal;

/// An agent writes its one byte at once and reads the answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pause after the system had no descriptor for a connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Serves for ever.
pub fn serve(listener: &UnixListener, mut terminal: Terminal) {
    loop {
        match listener.accept() {
            // Whoever asked has gone away, or is told by the end of the connection.
            Ok((stream, _)) => drop(answer(&stream, &mut terminal)),
            Err(_) => thread::sleep(AFTER_FAILURE),
        }
    }
}

fn answer(mut stream: &UnixStream, terminal: &mut Terminal) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let refusal = match Descriptor::from_byte(wanted[0]) {
        Some(Descriptor::Socket) => {
            match socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            ) {
                Ok(socket) => return pass(stream, socket.as_fd()),
                Err(error) => format!("there is no socket to be had: {error}"),
            }
        }
        Some(Descriptor::Terminal) => match terminal.open() {
            Ok(master) => return pass(stream, master),
            Err(error) => format!("the terminal's shell cannot be started: {error}"),
        },
        None => "this runner does not know what is wanted; it is older than the agent".to_owned(),
    };
    stream.write_all(&[REFUSED])?;
    stream.write_all(refusal.as_bytes())
}

fn pass(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    let beside = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(&[HERE])], &beside, flags, None)?;
    Ok(())
}
