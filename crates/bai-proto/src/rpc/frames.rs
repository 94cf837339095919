//! Requests and replies as the parts of messages (`agent-protocol.md` 1.3).

use bytes::Bytes;
use rmpv::Value;

use super::error::ErrorReply;
use crate::msgpack::{self, MsgpackError};
use crate::zmtp::Message;

const REQUEST_HEADER: usize = 16;
const REPLY_HEADER: usize = 17;
/// The longest name of a function that is looked at.
const MAX_NAME: usize = 256;

/// Why parts are no request or reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramesError {
    #[error("{0} frames are no request or reply")]
    Count(usize),
    #[error("a header of {0} bytes")]
    Header(usize),
    #[error("the name of the function is not text, or too long")]
    Name,
    #[error("the error flag is {0}")]
    Flag(u8),
    #[error("the {0} are no array or map")]
    Shape(&'static str),
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
}

/// Who speaks and when; for the other side's log only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sender {
    pub pid: u16,
    /// Chosen once for each connection.
    pub rnd: u16,
    /// Seconds of Unix time.
    pub timestamp: f64,
}

impl Sender {
    /// The first 16 bytes of a header.
    fn header(self, id: u32) -> Vec<u8> {
        let mut header = Vec::with_capacity(REPLY_HEADER);
        header.extend_from_slice(&self.pid.to_le_bytes());
        header.extend_from_slice(&self.rnd.to_le_bytes());
        header.extend_from_slice(&id.to_le_bytes());
        header.extend_from_slice(&self.timestamp.to_le_bytes());
        header
    }
}

/// The number of the call in a header of at least 16 bytes.
fn id_of(header: &[u8]) -> u32 {
    header
        .get(4..8)
        .and_then(|id| id.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A call as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Echoed before the reply; empty from a DEALER, an empty frame from a REQ.
    pub envelope: Message,
    pub id: u32,
    pub function: String,
    pub args: Vec<Value>,
    pub kwargs: Vec<(Value, Value)>,
}

impl Request {
    /// The parts for a DEALER.
    pub fn encode(&self, sender: Sender) -> Message {
        let mut message = self.envelope.clone();
        message.push(sender.header(self.id).into());
        message.push(self.function.clone().into());
        message.push(msgpack::encode(&Value::Array(self.args.clone())).into());
        message.push(msgpack::encode(&Value::Map(self.kwargs.clone())).into());
        message
    }

    /// # Errors
    /// When the parts are no request, which then gets no reply (1.6).
    pub fn decode(mut message: Message) -> Result<Self, FramesError> {
        let envelope = message
            .len()
            .checked_sub(4)
            .ok_or(FramesError::Count(message.len()))?;
        let rest = message.split_off(envelope);
        let [header, name, args, kwargs] = rest.as_slice() else {
            return Err(FramesError::Count(rest.len()));
        };
        if header.len() != REQUEST_HEADER {
            return Err(FramesError::Header(header.len()));
        }
        let function = str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME);
        let function = function.ok_or(FramesError::Name)?.to_owned();
        let Value::Array(args) = msgpack::decode(args)? else {
            return Err(FramesError::Shape("arguments"));
        };
        let Value::Map(kwargs) = msgpack::decode(kwargs)? else {
            return Err(FramesError::Shape("named arguments"));
        };
        Ok(Self {
            envelope: message,
            id: id_of(header),
            function,
            args,
            kwargs,
        })
    }
}

/// What a call is answered with.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub id: u32,
    pub answer: Result<Value, ErrorReply>,
}

impl Reply {
    /// The parts after the envelope of the request.
    pub fn encode(&self, envelope: Message, sender: Sender) -> Message {
        let mut header = sender.header(self.id);
        header.push(u8::from(self.answer.is_err()));
        let body = match &self.answer {
            Ok(value) => msgpack::encode(value),
            Err(error) => msgpack::encode(&error.to_value()),
        };
        let mut message = envelope;
        message.push(header.into());
        message.push(body.into());
        message
    }

    /// The number of the call that a reply answers, and the rest of it, which [`Reply::decode_answer`] reads. The two are
    /// apart so that a call whose answer is unreadable can be told so.
    ///
    /// # Errors
    /// When the parts are no reply to anything.
    pub fn decode_header(message: &[Bytes]) -> Result<(u32, bool, Bytes), FramesError> {
        let [header, body] = message else {
            return Err(FramesError::Count(message.len()));
        };
        if header.len() != REPLY_HEADER {
            return Err(FramesError::Header(header.len()));
        }
        match header[REPLY_HEADER - 1] {
            flag @ (0 | 1) => Ok((id_of(header), flag == 1, body.clone())),
            flag => Err(FramesError::Flag(flag)),
        }
    }

    /// # Errors
    /// When the answer is not readable.
    pub fn decode_answer(is_error: bool, body: &[u8]) -> Result<Result<Value, ErrorReply>, FramesError> {
        let value = msgpack::decode(body)?;
        if !is_error {
            return Ok(Ok(value));
        }
        ErrorReply::from_value(&value)
            .map(Err)
            .ok_or(FramesError::Shape("parts of an exception"))
    }

    /// Both at once.
    ///
    /// # Errors
    /// As the two.
    pub fn decode(message: &[Bytes]) -> Result<Self, FramesError> {
        let (id, is_error, body) = Self::decode_header(message)?;
        let answer = Self::decode_answer(is_error, &body)?;
        Ok(Self { id, answer })
    }
}
