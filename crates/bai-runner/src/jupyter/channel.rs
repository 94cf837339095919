//! One of a kernel's sockets: ZMTP (`bai_proto::zmtp`) over a unix socket, without threads.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bai_proto::zmtp::{
    Command, Decoder, GREETING_SIZE, Incoming, Limits, Message, SocketType, ZmtpError, check_greeting,
    encode_message, encode_pong, encode_ready_as, greeting,
};
use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, poll};

/// Bytes of one message.
pub const MAX_MESSAGE: usize = 64 << 20;
const LIMITS: Limits = Limits {
    frames: 64,
    bytes: MAX_MESSAGE,
};
const CHUNK: usize = 64 << 10;
/// How long a kernel may leave what we say unread: its sockets are served by a thread that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection after its handshake. After an error it is of no more use.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Channel {
    /// Connects, and shakes hands as a socket with a name.
    ///
    /// # Errors
    /// When nobody listens, or what listens speaks something else or not at all.
    pub fn open(path: &Path, ours: SocketType, identity: &[u8]) -> Result<Self, ZmtpError> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&greeting())?;
        let mut theirs = [0; GREETING_SIZE];
        stream.read_exact(&mut theirs)?;
        check_greeting(&theirs)?;
        stream.write_all(&encode_ready_as(ours, identity))?;
        let mut channel = Self {
            stream,
            buffer: BytesMut::new(),
            decoder: Decoder::new(LIMITS),
        };
        loop {
            match channel.decoder.decode(&mut channel.buffer)? {
                None => channel.read()?,
                Some(Incoming::Command(command)) => {
                    command.peer_type(ours)?;
                    break;
                }
                Some(Incoming::Message(_)) => {
                    return Err(ZmtpError::Malformed("no READY after the greeting"));
                }
            }
        }
        channel.stream.set_nonblocking(true)?;
        Ok(channel)
    }

    /// The next message that has arrived; `None` when there is none yet.
    ///
    /// # Errors
    /// When the connection has ended, or the other side breaks a rule.
    pub fn receive(&mut self) -> Result<Option<Message>, ZmtpError> {
        loop {
            match self.decoder.decode(&mut self.buffer)? {
                Some(Incoming::Message(message)) => return Ok(Some(message)),
                Some(Incoming::Command(Command::Ping { context })) => self.write(&encode_pong(&context))?,
                Some(Incoming::Command(Command::Error { reason })) => return Err(ZmtpError::Refused(reason)),
                Some(Incoming::Command(_)) => {}
                None => match self.read() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    read => read?,
                },
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// # Errors
    /// When the connection has ended, or the other side does not read.
    pub fn send(&mut self, message: &[Bytes]) -> Result<(), ZmtpError> {
        let mut bytes = BytesMut::new();
        encode_message(message, &mut bytes);
        Ok(self.write(&bytes)?)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
                    let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut polled, u16::try_from(left).unwrap_or(u16::MAX)) == Ok(0) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Readable when [`Channel::receive`] is worth calling.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use bai_proto::zmtp::encode_ready;

    use super::*;

    /// A channel, and the other end after the handshake.
    fn pair() -> (Channel, UnixStream) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("connected");
            stream.write_all(&greeting()).expect("written");
            stream
                .write_all(&encode_ready(SocketType::XPub))
                .expect("written");
            stream
                .read_exact(&mut vec![0; GREETING_SIZE + encode_ready(SocketType::Sub).len()])
                .expect("read");
            stream
        });
        let channel = Channel::open(&path, SocketType::Sub, b"").expect("a handshake");
        (channel, peer.join().expect("it shakes hands"))
    }

    #[test]
    fn messages_arrive_in_pieces_and_pings_are_answered() {
        let (mut channel, mut peer) = pair();
        assert!(matches!(channel.receive(), Ok(None)));
        peer.write_all(b"\x04\x07\x04PING\0\0\x01\x02ab\0")
            .expect("written");
        assert!(matches!(channel.receive(), Ok(None)));
        peer.write_all(b"\x01c").expect("written");
        let message = channel.receive().expect("read").expect("there");
        assert_eq!(message, ["ab", "c"]);
        let mut pong = [0; 7];
        peer.read_exact(&mut pong).expect("read");
        assert_eq!(&pong, b"\x04\x05\x04PONG");
        drop(peer);
        assert!(matches!(channel.receive(), Err(ZmtpError::Io(_))));
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let (mut channel, mut peer) = pair();
        let header = [&[2][..], &(MAX_MESSAGE as u64 + 1).to_be_bytes()].concat();
        peer.write_all(&header).expect("written");
        assert!(matches!(channel.receive(), Err(ZmtpError::TooLarge(_))));
    }

    #[test]
    fn long_messages_are_sent_while_the_other_side_reads() {
        let (mut channel, mut peer) = pair();
        let reader = thread::spawn(move || {
            let mut bytes = vec![0; 9 + (4 << 20)];
            peer.read_exact(&mut bytes).expect("read");
        });
        channel.send(&[Bytes::from(vec![b'x'; 4 << 20])]).expect("sent");
        reader.join().expect("everything arrived");
    }
}
