//! Greeting, commands and frames as bytes (`agent-protocol.md` 1.2).

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// The parts of one message, in order.
pub type Message = Vec<Bytes>;

/// The bytes with which each side begins.
pub const GREETING_SIZE: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// The longest command that is read; real ones have less than 100 bytes.
const MAX_COMMAND: usize = 1024;

/// How much a peer may send as one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub frames: usize,
    /// Bytes of all frames together.
    pub bytes: usize,
}

/// What a connection is used for; a peer names its own in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketType {
    Dealer,
    Router,
    Push,
    Pull,
    Pub,
    /// A PUB that sees who subscribes; the same on the wire.
    XPub,
    Sub,
    Req,
}

impl SocketType {
    const ALL: [Self; 8] = [
        Self::Dealer,
        Self::Router,
        Self::Push,
        Self::Pull,
        Self::Pub,
        Self::XPub,
        Self::Sub,
        Self::Req,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Push => "PUSH",
            Self::Pull => "PULL",
            Self::Pub => "PUB",
            Self::XPub => "XPUB",
            Self::Sub => "SUB",
            Self::Req => "REQ",
        }
    }

    /// Whether the two may talk.
    pub fn fits(self, peer: Self) -> bool {
        matches!(
            (self, peer),
            (Self::Dealer, Self::Router)
                | (Self::Router, Self::Dealer | Self::Req)
                | (Self::Push, Self::Pull)
                | (Self::Pull, Self::Push)
                | (Self::Pub | Self::XPub, Self::Sub)
                | (Self::Sub, Self::Pub | Self::XPub)
        )
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str().as_bytes() == name)
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the peer does not speak ZeroMQ (ZMTP 3)")]
    NotZmtp,
    #[error("the peer wants the mechanism {0:?}, and only NULL is spoken here")]
    Mechanism(String),
    #[error("the peer is a {theirs} where a {ours} listens; it uses a wrong port")]
    WrongType { ours: SocketType, theirs: String },
    #[error("the peer did not finish its handshake in time")]
    HandshakeTimeout,
    #[error("the peer refused the connection: {0}")]
    Refused(String),
    #[error("a message announces more than {0} bytes")]
    TooLarge(usize),
    #[error("a message has more than {0} frames")]
    TooManyFrames(usize),
    #[error("a frame is malformed: {0}")]
    Malformed(&'static str),
}

/// The greeting of this side.
pub fn greeting() -> [u8; GREETING_SIZE] {
    let mut greeting = [0; GREETING_SIZE];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Whether a peer that begins with `greeting` can be talked to. A minor version is not looked at.
///
/// # Errors
/// When it speaks something else.
pub fn check_greeting(greeting: &[u8; GREETING_SIZE]) -> Result<(), ZmtpError> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 || greeting[10] < 3 {
        return Err(ZmtpError::NotZmtp);
    }
    let mechanism = &greeting[12..32];
    let end = mechanism
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(mechanism.len());
    if &mechanism[..end] != b"NULL" {
        let name = String::from_utf8_lossy(&mechanism[..end]).into_owned();
        return Err(ZmtpError::Mechanism(name));
    }
    Ok(())
}

/// What a peer says besides messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The end of the handshake. The name of the peer's socket type may be unknown here.
    Ready {
        socket_type: Vec<u8>,
    },
    /// To be answered by a PONG with the same context.
    Ping {
        context: Bytes,
    },
    Error {
        reason: String,
    },
    /// Nothing to do: PONG, and what later versions may bring.
    Other,
}

impl Command {
    /// Reads the body of a command frame.
    fn decode(body: &Bytes) -> Result<Self, ZmtpError> {
        let (name, rest) = short(body).ok_or(ZmtpError::Malformed("a command without a name"))?;
        Ok(match name {
            b"READY" => Self::Ready {
                socket_type: property(rest, b"socket-type")?.unwrap_or_default(),
            },
            // Two bytes of a time to live come first.
            b"PING" => Self::Ping {
                context: body.slice_ref(rest.get(2..).unwrap_or_default()),
            },
            b"ERROR" => Self::Error {
                reason: String::from_utf8_lossy(short(rest).map_or(rest, |(reason, _)| reason)).into_owned(),
            },
            _ => Self::Other,
        })
    }

    /// The peer's socket type after a handshake as `ours`.
    ///
    /// # Errors
    /// When this is no end of a handshake, or the two do not fit.
    pub fn peer_type(self, ours: SocketType) -> Result<SocketType, ZmtpError> {
        match self {
            Self::Ready { socket_type } => SocketType::from_name(&socket_type)
                .filter(|theirs| ours.fits(*theirs))
                .ok_or_else(|| ZmtpError::WrongType {
                    ours,
                    theirs: String::from_utf8_lossy(&socket_type).chars().take(32).collect(),
                }),
            Self::Error { reason } => Err(ZmtpError::Refused(reason)),
            Self::Ping { .. } | Self::Other => Err(ZmtpError::Malformed("no READY after the greeting")),
        }
    }
}

/// A text that is preceded by its length in one byte, and what follows.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// The value of a property of READY; names are compared in lower case.
fn property(mut rest: &[u8], wanted: &[u8]) -> Result<Option<Vec<u8>>, ZmtpError> {
    const CUT: ZmtpError = ZmtpError::Malformed("a property is cut off");
    while !rest.is_empty() {
        let (name, after) = short(rest).ok_or(CUT)?;
        let (length, after) = after.split_first_chunk().ok_or(CUT)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (value, after) = after.split_at_checked(length).ok_or(CUT)?;
        if name.eq_ignore_ascii_case(wanted) {
            return Ok(Some(value.to_vec()));
        }
        rest = after;
    }
    Ok(None)
}

/// The command with which a handshake ends, of a side that lets its peer name it.
pub fn encode_ready(ours: SocketType) -> Vec<u8> {
    encode_ready_as(ours, b"")
}

/// As [`encode_ready`], with the name that a ROUTER is to have for this side: the same on two of its sockets lets it answer
/// on one what came on the other. At most 255 bytes, not beginning with NUL.
pub fn encode_ready_as(ours: SocketType, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    let mut add = |name: &str, value: &[u8]| {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    };
    add("Socket-Type", ours.as_str().as_bytes());
    if matches!(ours, SocketType::Dealer | SocketType::Router | SocketType::Req) {
        add("Identity", identity);
    }
    frame_of(COMMAND, &body)
}

/// The answer to a PING.
pub fn encode_pong(context: &[u8]) -> Vec<u8> {
    frame_of(COMMAND, &[b"\x04PONG", context].concat())
}

/// The message by which a SUB asks for everything that begins with `prefix`.
pub fn subscription(prefix: &[u8]) -> Message {
    vec![Bytes::from([&[1], prefix].concat())]
}

/// The bytes of a message on a connection.
pub fn encode_message(message: &[Bytes], buffer: &mut BytesMut) {
    for (index, frame) in message.iter().enumerate() {
        let more = if index + 1 < message.len() { MORE } else { 0 };
        encode_frame(more, frame, buffer);
    }
}

fn frame_of(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    encode_frame(flags, body, &mut buffer);
    buffer.into()
}

fn encode_frame(flags: u8, body: &[u8], buffer: &mut BytesMut) {
    match u8::try_from(body.len()) {
        Ok(length) => buffer.extend_from_slice(&[flags, length]),
        Err(_) => {
            buffer.extend_from_slice(&[flags | LONG]);
            buffer.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    buffer.extend_from_slice(body);
}

/// What arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Message(Message),
    Command(Command),
}

/// Puts messages together. After an error the connection is of no more use.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    frames: Message,
    /// Bytes of the frames above.
    held: usize,
}

/// Flags, the size of flags and length together, and the length of a frame.
struct Header {
    flags: u8,
    size: usize,
    length: usize,
}

impl Decoder {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            frames: Message::new(),
            held: 0,
        }
    }

    /// Takes the next command or message from the front of `buffer`; `None` when more bytes are needed. Nothing is reserved
    /// for what has only been announced.
    ///
    /// # Errors
    /// When the limits are exceeded, as soon as that is announced, or no more bytes could make it right.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, ZmtpError> {
        while let Some(header) = self.header(buffer)? {
            if buffer.len() - header.size < header.length {
                return Ok(None);
            }
            buffer.advance(header.size);
            let body = buffer.split_to(header.length).freeze();
            if header.flags & COMMAND != 0 {
                return Ok(Some(Incoming::Command(Command::decode(&body)?)));
            }
            self.held += body.len();
            self.frames.push(body);
            if header.flags & MORE == 0 {
                self.held = 0;
                return Ok(Some(Incoming::Message(std::mem::take(&mut self.frames))));
            }
        }
        Ok(None)
    }

    /// The header at the front of `buffer`, within the limits.
    fn header(&self, buffer: &[u8]) -> Result<Option<Header>, ZmtpError> {
        let Some((flags, rest)) = buffer.split_first() else {
            return Ok(None);
        };
        let is_command = flags & COMMAND != 0;
        if flags & !(MORE | LONG | COMMAND) != 0 || (is_command && flags & MORE != 0) {
            return Err(ZmtpError::Malformed("unknown flags"));
        }
        let (size, length) = if flags & LONG != 0 {
            let Some(length) = rest.first_chunk() else {
                return Ok(None);
            };
            (
                9,
                usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX),
            )
        } else {
            let Some(length) = rest.first() else {
                return Ok(None);
            };
            (2, usize::from(*length))
        };
        if is_command {
            if length > MAX_COMMAND {
                return Err(ZmtpError::TooLarge(MAX_COMMAND));
            }
        } else {
            if self.frames.len() >= self.limits.frames {
                return Err(ZmtpError::TooManyFrames(self.limits.frames));
            }
            if length > self.limits.bytes - self.held {
                return Err(ZmtpError::TooLarge(self.limits.bytes));
            }
        }
        Ok(Some(Header {
            flags: *flags,
            size,
            length,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        frames: 8,
        bytes: 4096,
    };

    #[test]
    fn the_handshake_is_as_captured() {
        let mut expected = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
        expected.extend_from_slice(b"NULL");
        expected.resize(64, 0);
        assert_eq!(greeting().as_slice(), expected);
        let dealer =
            "0429055245414459 0b536f636b65742d54797065 00000006 4445414c4552 084964656e74697479 00000000";
        assert_eq!(
            hex::encode(encode_ready(SocketType::Dealer)),
            dealer.replace(' ', "")
        );
        let push = "041a055245414459 0b536f636b65742d54797065 00000004 50555348";
        assert_eq!(hex::encode(encode_ready(SocketType::Push)), push.replace(' ', ""));
        let named = encode_ready_as(SocketType::Dealer, b"ab");
        assert!(named.ends_with(b"\x08Identity\0\0\0\x02ab"));
    }

    #[test]
    fn what_is_announced_is_refused_before_it_arrives() {
        let mut decoder = Decoder::new(LIMITS);
        let mut bytes = BytesMut::from(&[&[2][..], &(1_u64 << 46).to_be_bytes()].concat()[..]);
        assert!(matches!(
            decoder.decode(&mut bytes),
            Err(ZmtpError::TooLarge(4096))
        ));
        let mut bytes = BytesMut::from(&[1, 0].repeat(9)[..]);
        let mut decoder = Decoder::new(LIMITS);
        assert!(matches!(
            decoder.decode(&mut bytes),
            Err(ZmtpError::TooManyFrames(8))
        ));
        let mut bytes = BytesMut::from(&[&[6][..], &(2000_u64).to_be_bytes()].concat()[..]);
        assert!(matches!(
            Decoder::new(LIMITS).decode(&mut bytes),
            Err(ZmtpError::TooLarge(_))
        ));
    }

    #[test]
    fn pings_are_read_and_answered() {
        let mut bytes = BytesMut::from(&b"\x04\x09\x04PING\x00\x0aab"[..]);
        let read = Decoder::new(LIMITS).decode(&mut bytes).expect("a command");
        let ping = Command::Ping {
            context: Bytes::from_static(b"ab"),
        };
        assert_eq!(read, Some(Incoming::Command(ping)));
        assert_eq!(encode_pong(b"ab"), b"\x04\x07\x04PONGab");
    }

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let frame = proptest::collection::vec(any::<u8>(), 0..400).prop_map(Bytes::from);
        proptest::collection::vec(proptest::collection::vec(frame, 1..6), 0..6)
    }

    proptest! {
        /// However the bytes come in pieces.
        #[test]
        fn messages_round_trip(messages in messages(), step in 1..50_usize) {
            let mut sent = BytesMut::new();
            for message in &messages {
                encode_message(message, &mut sent);
            }
            let mut decoder = Decoder::new(LIMITS);
            let (mut buffer, mut received) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(Incoming::Message(message)) = decoder.decode(&mut buffer).expect("messages") {
                    received.push(message);
                }
            }
            prop_assert_eq!(received, messages);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::new(LIMITS);
            while let Ok(Some(incoming)) = decoder.decode(&mut buffer) {
                if let Incoming::Message(message) = incoming {
                    prop_assert!(message.len() <= 8);
                }
            }
        }
    }
}
