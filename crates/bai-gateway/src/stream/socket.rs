//! A websocket at the server: its handshake, its messages, and the ways in which it ends.
//!
//! Not here: when it ends and what is said on it.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use bai_core::stream::StreamEnd;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::request::Parts;
use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use crate::error::Problem;
use crate::pipeline::Answer;
use crate::serve::Connection;

/// The largest message of a client (`http-api.md` 1.1).
const MAX_MESSAGE: usize = 4 << 20;
/// What is read at once, and kept for each socket.
const READ_BUFFER: usize = 4 << 10;
/// How long a client may take to read a message, where it has no reason to wait.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the closing handshake may take, and while the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const STOPPING_TIMEOUT: Duration = Duration::from_secs(3);
/// A client that was told of its error and says nothing for so long has heard it.
const SILENCE: Duration = Duration::from_secs(1);

type Raw = WebSocketStream<TokioIo<Upgraded>>;

/// A handshake that may succeed.
pub(super) struct Handshake {
    answer: Answer,
    upgrade: OnUpgrade,
    connection: Connection,
}

impl Handshake {
    /// What a request asks for.
    ///
    /// # Errors
    /// 400 for one that asks for no websocket.
    pub(super) fn of(parts: &mut Parts) -> Result<Self, Problem> {
        let refused = || Problem::bad_request(None);
        let mut request = Request::new(());
        *request.method_mut() = parts.method.clone();
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.clone();
        let answer: Response<()> = create_response(&request).map_err(|_| refused())?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let connection = parts.extensions.remove::<Connection>();
        let (Some(upgrade), Some(connection)) = (upgrade, connection) else {
            return Err(refused());
        };
        Ok(Self {
            answer: answer.map(|()| Body::empty()),
            upgrade,
            connection,
        })
    }

    /// Agrees, and has the websocket served until it ends.
    pub(super) fn accept<F>(self, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = ()> + Send,
    {
        let upgrade = self.upgrade;
        self.connection.go_on(async move {
            match upgrade.await {
                Ok(upgraded) => serve(Socket::new(TokioIo::new(upgraded)).await).await,
                Err(error) => tracing::debug!(%error, "a websocket was not opened"),
            }
        });
        self.answer
    }
}

/// A message that means something.
#[derive(Debug)]
pub(super) enum Received {
    Text(Utf8Bytes),
    Binary(Bytes),
    /// It is answered already.
    Ping,
}

/// Why a websocket ends.
#[derive(Debug)]
pub(super) enum End {
    /// We close, with a code and a reason.
    Close(CloseCode, Cow<'static, str>),
    /// The client closes.
    Closed,
    /// The client is gone, or has broken what would be needed to say more.
    Gone,
}

impl End {
    /// Everything was said.
    pub(super) fn done() -> Self {
        Self::Close(CloseCode::Normal, "".into())
    }

    /// The manager ends it, with `session_code` where that is because its session has ended.
    pub(super) fn of(end: StreamEnd, session_code: CloseCode) -> Self {
        match end {
            StreamEnd::Session => Self::Close(session_code, "the session has ended".into()),
            StreamEnd::ShutOut => Self::Close(
                CloseCode::Policy,
                "the access key may not use this stream any more".into(),
            ),
        }
    }

    /// The server stops.
    pub(super) fn stopping() -> Self {
        Self::Close(CloseCode::Away, "the server is stopping".into())
    }
}

/// Both directions of a websocket.
#[derive(Debug)]
pub(super) struct Socket {
    pub sender: Sender,
    pub receiver: Receiver,
}

#[derive(Debug)]
pub(super) struct Sender(SplitSink<Raw, Message>);

#[derive(Debug)]
pub(super) struct Receiver(SplitStream<Raw>);

impl Socket {
    async fn new(upgraded: TokioIo<Upgraded>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * MAX_MESSAGE)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let (sink, stream) = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config))
            .await
            .split();
        Self {
            sender: Sender(sink),
            receiver: Receiver(stream),
        }
    }

    /// Ends the websocket as was decided. A client that does not play its part is left alone.
    pub(super) async fn end(mut self, end: End) {
        let ended = async {
            match end {
                End::Gone => {}
                // The answer goes out while the end is looked for.
                End::Closed => while let Some(Ok(_)) = self.receiver.0.next().await {},
                End::Close(code, reason) => {
                    let timeout = match code {
                        CloseCode::Away => STOPPING_TIMEOUT,
                        _ => CLOSE_TIMEOUT,
                    };
                    _ = tokio::time::timeout(timeout, self.close(code, &reason)).await;
                }
            }
        };
        _ = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
    }

    async fn close(self, code: CloseCode, reason: &str) {
        let Self {
            mut sender,
            mut receiver,
        } = self;
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        if sender.0.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
        if !matches!(code, CloseCode::Size | CloseCode::Invalid | CloseCode::Protocol) {
            while let Some(Ok(_)) = receiver.0.next().await {}
            return;
        }
        // What else comes cannot be understood any more. It is taken in all the same, because a connection that is
        // closed with something unread is reset, and the client would not see why.
        let Ok(mut raw) = receiver.0.reunite(sender.0) else {
            return;
        };
        let mut rest = BytesMut::with_capacity(READ_BUFFER);
        while let Ok(Ok(1..)) = tokio::time::timeout(SILENCE, raw.get_mut().read_buf(&mut rest)).await {
            rest.clear();
        }
    }
}

impl Receiver {
    /// The next message of the client.
    ///
    /// # Errors
    /// How the websocket ends instead.
    pub(super) async fn next(&mut self) -> Result<Received, End> {
        loop {
            return match self.0.next().await {
                Some(Ok(Message::Text(text))) => Ok(Received::Text(text)),
                Some(Ok(Message::Binary(bytes))) => Ok(Received::Binary(bytes)),
                Some(Ok(Message::Ping(_))) => Ok(Received::Ping),
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) => Err(End::Closed),
                Some(Err(error)) => Err(end_of(&error)),
                None => Err(End::Gone),
            };
        }
    }
}

/// What a client is told that broke the rules.
fn end_of(error: &tungstenite::Error) -> End {
    use tungstenite::Error as E;
    match error {
        E::Capacity(CapacityError::MessageTooLong { max_size, .. }) => End::Close(
            CloseCode::Size,
            format!("a message may have {max_size} bytes").into(),
        ),
        E::Utf8(_) => End::Close(CloseCode::Invalid, "a text must be UTF-8".into()),
        E::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
        E::Protocol(error) => End::Close(CloseCode::Protocol, error.to_string().into()),
        _ => End::Gone,
    }
}

impl Sender {
    /// Sends a text to a client that is expected to read at once.
    ///
    /// # Errors
    /// [`End::Gone`] when it does not.
    pub(super) async fn text(&mut self, text: String) -> Result<(), End> {
        let sending = self.0.send(Message::Text(text.into()));
        match tokio::time::timeout(WRITE_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    /// Sends bytes, for as long as the client takes some of them now and then ([`crate::STALL_LIMIT`]).
    ///
    /// # Errors
    /// [`End::Gone`].
    pub(super) async fn binary(&mut self, bytes: Bytes) -> Result<(), End> {
        self.0.send(Message::Binary(bytes)).await.map_err(|_| End::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: &tungstenite::Error) -> Option<u16> {
        match end_of(error) {
            End::Close(code, reason) => {
                assert!(reason.len() <= 123, "a close frame has no room for {reason}");
                Some(code.into())
            }
            End::Closed | End::Gone => None,
        }
    }

    #[test]
    fn each_error_has_its_code() {
        let too_long = CapacityError::MessageTooLong {
            size: MAX_MESSAGE + 1,
            max_size: MAX_MESSAGE,
        };
        assert_eq!(code(&tungstenite::Error::Capacity(too_long)), Some(1009));
        assert_eq!(code(&tungstenite::Error::Utf8("x".into())), Some(1007));
        let unmasked = ProtocolError::UnmaskedFrameFromClient;
        assert_eq!(code(&tungstenite::Error::Protocol(unmasked)), Some(1002));
        let reset = ProtocolError::ResetWithoutClosingHandshake;
        assert_eq!(code(&tungstenite::Error::Protocol(reset)), None);
    }
}
