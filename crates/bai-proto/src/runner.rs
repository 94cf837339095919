//! The runner protocol (`agent-protocol.md` 6.3): two-part messages `[type, data]` in both directions.
//!
//! Over ZeroMQ the two parts are two frames. Over a byte stream (a unix socket, here) each message is
//!
//! ```text
//! u8 length of type | type | u32 big-endian length of data | data
//! ```
//!
//! Invariants: a type is at most 32 bytes and data at most [`MAX_DATA`]; a peer that sends more is cut off with
//! [`FrameError::TooLarge`] before anything is allocated for it. Of what is announced, no more is allocated than arrives.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The largest payload of one message. Records longer than [`MAX_RECORD`] are truncated by their sender.
pub const MAX_DATA: usize = 16 << 20;
/// The largest console record that is passed on (`agent-protocol.md` 6.2).
pub const MAX_RECORD: usize = 10 << 20;
const MAX_TYPE: usize = 32;

/// A two-part message before or after its meaning is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: String,
    pub data: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("a message part may not have {0} bytes")]
    TooLarge(usize),
    #[error("the message type is not ASCII text")]
    BadType,
    #[error("a message has two parts, not {0}")]
    Parts(usize),
}

impl Frame {
    pub fn new(kind: &str, data: impl Into<Vec<u8>>) -> Self {
        Self {
            kind: kind.to_owned(),
            data: data.into(),
        }
    }

    /// The bytes of this message on a stream.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(5 + self.kind.len() + self.data.len());
        bytes.push(self.kind.len() as u8);
        bytes.extend_from_slice(self.kind.as_bytes());
        bytes.extend_from_slice(&(self.data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&self.data);
        bytes
    }

    /// The first message of `bytes` and what follows it; `None` when it is not complete yet.
    ///
    /// # Errors
    /// When no more bytes could make it a message.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, &[u8])>, FrameError> {
        let Some((length, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let Some((kind, rest)) = rest.split_at_checked(checked_type_length(*length)?) else {
            return Ok(None);
        };
        let kind = checked_type(kind.to_vec())?;
        let Some((length, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let Some((data, rest)) = rest.split_at_checked(checked_data_length(*length)?) else {
            return Ok(None);
        };
        let data = data.to_vec();
        Ok(Some((Self { kind, data }, rest)))
    }

    /// A message that arrives as parts, as over ZeroMQ.
    ///
    /// # Errors
    /// When there are not two of them, or one breaks the rules of its place.
    pub fn from_parts(parts: &[impl AsRef<[u8]>]) -> Result<Self, FrameError> {
        let [kind, data] = parts else {
            return Err(FrameError::Parts(parts.len()));
        };
        let (kind, data) = (kind.as_ref(), data.as_ref());
        if kind.is_empty() || kind.len() > MAX_TYPE {
            return Err(FrameError::TooLarge(kind.len()));
        }
        if data.len() > MAX_DATA {
            return Err(FrameError::TooLarge(data.len()));
        }
        Ok(Self {
            kind: checked_type(kind.to_vec())?,
            data: data.to_vec(),
        })
    }

    pub fn write_to(&self, stream: &mut impl Write) -> io::Result<()> {
        stream.write_all(&self.encode())
    }

    /// The next message of a blocking stream; `None` at its orderly end.
    pub fn read_from(stream: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut length = [0; 1];
        if stream.read(&mut length)? == 0 {
            return Ok(None);
        }
        let mut kind = vec![0; checked_type_length(length[0])?];
        stream.read_exact(&mut kind)?;
        let kind = checked_type(kind)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut data = Vec::new();
        let length = checked_data_length(length)?;
        if stream.take(length as u64).read_to_end(&mut data)? < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(Self { kind, data }))
    }

    /// As [`Frame::read_from`], for an asynchronous stream. Not cancel-safe: give it a task of its own.
    #[cfg(feature = "agent")]
    pub async fn read_async(
        stream: &mut (impl tokio::io::AsyncRead + Unpin),
    ) -> Result<Option<Self>, FrameError> {
        use tokio::io::AsyncReadExt;
        let mut length = [0; 1];
        if stream.read(&mut length).await? == 0 {
            return Ok(None);
        }
        let mut kind = vec![0; checked_type_length(length[0])?];
        stream.read_exact(&mut kind).await?;
        let kind = checked_type(kind)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut data = Vec::new();
        let length = checked_data_length(length)?;
        if stream.take(length as u64).read_to_end(&mut data).await? < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(Self { kind, data }))
    }
}

fn checked_type_length(length: u8) -> Result<usize, FrameError> {
    let length = usize::from(length);
    if length == 0 || length > MAX_TYPE {
        Err(FrameError::TooLarge(length))
    } else {
        Ok(length)
    }
}

fn checked_data_length(length: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_DATA {
        Err(FrameError::TooLarge(length))
    } else {
        Ok(length)
    }
}

fn checked_type(kind: Vec<u8>) -> Result<String, FrameError> {
    String::from_utf8(kind)
        .ok()
        .filter(|kind| kind.is_ascii())
        .ok_or(FrameError::BadType)
}

/// What an agent tells a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Batch step: a shell command, `*` for the language's default, or empty for nothing.
    Clean(String),
    Build(String),
    Exec(String),
    /// Source text to evaluate in query mode.
    Code(String),
    /// What the user typed; no newline is added.
    Input(String),
    /// JSON `{"code": …, "row": …, "col": …, "line": …, "post": …}`.
    Complete(String),
    Interrupt,
    Status,
    /// JSON of a [`ServiceRequest`].
    StartService(String),
    /// An operation that this version does not know; ignored by runners.
    Unknown(String),
}

impl Request {
    pub fn to_frame(&self) -> Frame {
        match self {
            Self::Clean(command) => Frame::new("clean", command.as_bytes()),
            Self::Build(command) => Frame::new("build", command.as_bytes()),
            Self::Exec(command) => Frame::new("exec", command.as_bytes()),
            Self::Code(code) => Frame::new("code", code.as_bytes()),
            Self::Input(text) => Frame::new("input", text.as_bytes()),
            Self::Complete(json) => Frame::new("complete", json.as_bytes()),
            Self::Interrupt => Frame::new("interrupt", ""),
            Self::Status => Frame::new("status", ""),
            Self::StartService(json) => Frame::new("start-service", json.as_bytes()),
            Self::Unknown(kind) => Frame::new(kind, ""),
        }
    }

    /// Never fails: payloads that are not UTF-8 are read with replacement characters (Q-35: one bad message must
    /// not make a session deaf).
    pub fn from_frame(frame: Frame) -> Self {
        let text = || String::from_utf8_lossy(&frame.data).into_owned();
        match frame.kind.as_str() {
            "clean" => Self::Clean(text()),
            "build" => Self::Build(text()),
            "exec" => Self::Exec(text()),
            "code" => Self::Code(text()),
            "input" => Self::Input(text()),
            "complete" => Self::Complete(text()),
            "interrupt" => Self::Interrupt,
            "status" => Self::Status,
            "start-service" => Self::StartService(text()),
            _ => Self::Unknown(frame.kind),
        }
    }
}

/// The start of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceRequest {
    pub name: String,
    /// Where it is to listen inside the session.
    pub port: u16,
    /// `tcp`, `http` or `pty`.
    pub protocol: String,
    /// A shell command that runs it, if the image or the caller names one; it finds the port as `$PORT`. Of ours alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(default)]
    pub options: serde_json::Value,
}

/// How the start of a service went, or, unasked, that it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceResult {
    pub status: ServiceStatus,
    /// Why it failed, or how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Which one. Runners of 19.06 do not say it, so that late answers are taken for others (Q-34).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceStatus {
    Started,
    /// It had been started earlier, and listens.
    Running,
    Failed,
    /// It ran, and has ended by itself. Of ours alone.
    Ended,
}

impl ServiceResult {
    fn new(name: &str, status: ServiceStatus, error: Option<String>) -> Self {
        let name = Some(name.to_owned());
        Self { status, error, name }
    }

    pub fn started(name: &str) -> Self {
        Self::new(name, ServiceStatus::Started, None)
    }

    pub fn running(name: &str) -> Self {
        Self::new(name, ServiceStatus::Running, None)
    }

    pub fn failed(name: &str, why: String) -> Self {
        Self::new(name, ServiceStatus::Failed, Some(why))
    }

    pub fn ended(name: &str, how: String) -> Self {
        Self::new(name, ServiceStatus::Ended, Some(how))
    }
}

/// What a runner tells its agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// A MIME type and its data (text, or base64 for binary types).
    Media {
        mime: String,
        data: String,
    },
    Html(String),
    Log(String),
    /// JSON array of strings.
    Completion(String),
    /// JSON of a [`ServiceResult`].
    ServiceResult(String),
    /// What a service printed. Of ours alone: it belongs to the session's log and to no run.
    ServiceOutput(Vec<u8>),
    /// Opaque answer to [`Request::Status`].
    Status(Vec<u8>),
    WaitingInput {
        is_password: Option<bool>,
    },
    CleanFinished {
        exit_code: Option<i32>,
    },
    BuildFinished {
        exit_code: Option<i32>,
    },
    Finished {
        exit_code: Option<i32>,
    },
    Unknown(String),
}

#[derive(Serialize, Deserialize)]
struct MediaPayload {
    r#type: String,
    data: String,
}

#[derive(Serialize, Deserialize)]
struct InputPayload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is_password: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct ExitPayload {
    #[serde(rename = "exitCode", default)]
    exit_code: Option<i32>,
}

fn json(payload: &impl Serialize) -> Vec<u8> {
    // Plain structs of strings and numbers always serialise.
    serde_json::to_vec(payload).unwrap_or_default()
}

impl Record {
    pub fn to_frame(&self) -> Frame {
        match self {
            Self::Stdout(bytes) => Frame::new("stdout", bytes.as_slice()),
            Self::Stderr(bytes) => Frame::new("stderr", bytes.as_slice()),
            Self::Media { mime, data } => Frame::new(
                "media",
                json(&MediaPayload {
                    r#type: mime.clone(),
                    data: data.clone(),
                }),
            ),
            Self::Html(text) => Frame::new("html", text.as_bytes()),
            Self::Log(text) => Frame::new("log", text.as_bytes()),
            Self::Completion(text) => Frame::new("completion", text.as_bytes()),
            Self::ServiceResult(text) => Frame::new("service-result", text.as_bytes()),
            Self::ServiceOutput(bytes) => Frame::new("service-output", bytes.as_slice()),
            Self::Status(bytes) => Frame::new("status", bytes.as_slice()),
            Self::WaitingInput { is_password: None } => Frame::new("waiting-input", ""),
            Self::WaitingInput { is_password } => Frame::new(
                "waiting-input",
                json(&InputPayload {
                    is_password: *is_password,
                }),
            ),
            Self::CleanFinished { exit_code } => Frame::new(
                "clean-finished",
                json(&ExitPayload {
                    exit_code: *exit_code,
                }),
            ),
            Self::BuildFinished { exit_code } => Frame::new(
                "build-finished",
                json(&ExitPayload {
                    exit_code: *exit_code,
                }),
            ),
            Self::Finished { exit_code } => Frame::new(
                "finished",
                json(&ExitPayload {
                    exit_code: *exit_code,
                }),
            ),
            Self::Unknown(kind) => Frame::new(kind, ""),
        }
    }

    /// Never fails: a malformed payload degrades (media that is not JSON is HTML, Q-28; an unreadable exit code is
    /// none).
    pub fn from_frame(frame: Frame) -> Self {
        let text = |data: Vec<u8>| String::from_utf8_lossy(&data).into_owned();
        let exit_code = |data: &[u8]| {
            serde_json::from_slice::<ExitPayload>(data)
                .ok()
                .and_then(|exit| exit.exit_code)
        };
        match frame.kind.as_str() {
            "stdout" => Self::Stdout(frame.data),
            "stderr" => Self::Stderr(frame.data),
            "media" => match serde_json::from_slice::<MediaPayload>(&frame.data) {
                Ok(media) => Self::Media {
                    mime: media.r#type,
                    data: media.data,
                },
                Err(_) => Self::Html(text(frame.data)),
            },
            "html" => Self::Html(text(frame.data)),
            "log" => Self::Log(text(frame.data)),
            "completion" => Self::Completion(text(frame.data)),
            "service-result" => Self::ServiceResult(text(frame.data)),
            "service-output" => Self::ServiceOutput(frame.data),
            "status" => Self::Status(frame.data),
            "waiting-input" => Self::WaitingInput {
                is_password: serde_json::from_slice::<InputPayload>(&frame.data)
                    .ok()
                    .and_then(|input| input.is_password),
            },
            "clean-finished" => Self::CleanFinished {
                exit_code: exit_code(&frame.data),
            },
            "build-finished" => Self::BuildFinished {
                exit_code: exit_code(&frame.data),
            },
            "finished" => Self::Finished {
                exit_code: exit_code(&frame.data),
            },
            _ => Self::Unknown(frame.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_look_as_the_original_sends_them() {
        let frame = Record::Finished { exit_code: Some(3) }.to_frame();
        assert_eq!(
            (frame.kind.as_str(), frame.data.as_slice()),
            ("finished", br#"{"exitCode":3}"#.as_slice())
        );
        let frame = Record::WaitingInput {
            is_password: Some(false),
        }
        .to_frame();
        assert_eq!(frame.data, br#"{"is_password":false}"#);
        assert_eq!(Record::WaitingInput { is_password: None }.to_frame().data, b"");
    }

    #[test]
    fn media_that_is_not_json_is_html() {
        let record = Record::from_frame(Frame::new("media", "<b>x</b>"));
        assert_eq!(record, Record::Html("<b>x</b>".into()));
    }

    #[test]
    fn oversized_parts_are_refused_before_they_are_read() {
        let mut bytes = vec![4];
        bytes.extend_from_slice(b"code");
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            Frame::read_from(&mut bytes.as_slice()),
            Err(FrameError::TooLarge(_))
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(frame)) = Frame::read_from(&mut bytes.as_slice()) {
                let _ = Request::from_frame(frame.clone());
                let _ = Record::from_frame(frame);
            }
        }

        #[test]
        fn requests_round_trip(text in ".*") {
            for request in [Request::Code(text.clone()), Request::Exec(text.clone()), Request::Input(text.clone())] {
                let bytes = request.to_frame().encode();
                let frame = Frame::read_from(&mut bytes.as_slice()).expect("readable").expect("present");
                prop_assert_eq!(Request::from_frame(frame), request);
            }
        }
    }
}
