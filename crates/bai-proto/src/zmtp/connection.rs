//! One connection: the handshake, then messages in both directions until it ends.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::codec::{
    Command, Decoder, GREETING_SIZE, Incoming, Limits, SocketType, ZmtpError, check_greeting, encode_message,
    encode_pong, encode_ready, greeting,
};

/// How much is read at once.
const CHUNK: usize = 16 << 10;
/// How long a peer may take for greeting and READY.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Any two-way stream of bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type BoxedStream = Box<dyn Stream>;

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    pub reader: Reader,
    pub writer: Writer,
    /// The other end.
    pub peer: SocketAddr,
    pub peer_type: SocketType,
}

impl Connection {
    /// Shakes hands with the peer at the other end of `stream`.
    ///
    /// # Errors
    /// When it does not speak ZMTP 3 with the mechanism NULL, is no counterpart of `ours`, or takes too long.
    pub async fn establish(
        stream: impl Stream + 'static,
        peer: SocketAddr,
        ours: SocketType,
        limits: Limits,
    ) -> Result<Self, ZmtpError> {
        let shake = Self::shake_hands(Box::new(stream), peer, ours, limits);
        tokio::time::timeout(HANDSHAKE, shake)
            .await
            .map_err(|_| ZmtpError::HandshakeTimeout)?
    }

    async fn shake_hands(
        mut stream: BoxedStream,
        peer: SocketAddr,
        ours: SocketType,
        limits: Limits,
    ) -> Result<Self, ZmtpError> {
        stream.write_all(&greeting()).await?;
        let mut theirs = [0; GREETING_SIZE];
        // A peer that speaks something else may send less than a greeting, and then wait.
        stream.read_exact(&mut theirs[..1]).await?;
        if theirs[0] != 0xff {
            return Err(ZmtpError::NotZmtp);
        }
        stream.read_exact(&mut theirs[1..]).await?;
        check_greeting(&theirs)?;
        stream.write_all(&encode_ready(ours)).await?;
        let (reading, writing) = tokio::io::split(stream);
        let mut reader = Reader {
            stream: reading,
            buffer: BytesMut::new(),
            decoder: Decoder::new(limits),
        };
        let Some(Incoming::Command(ready)) = reader.next().await? else {
            return Err(ZmtpError::Malformed("no READY after the greeting"));
        };
        Ok(Self {
            reader,
            writer: Writer {
                stream: writing,
                buffer: BytesMut::new(),
            },
            peer,
            peer_type: ready.peer_type(ours)?,
        })
    }
}

/// What comes from the peer.
pub struct Reader {
    stream: ReadHalf<BoxedStream>,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Reader {
    /// The next command or message; `None` at the end of the connection. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the connection breaks, or the peer breaks a rule.
    pub async fn next(&mut self) -> Result<Option<Incoming>, ZmtpError> {
        loop {
            if let Some(incoming) = self.decoder.decode(&mut self.buffer)? {
                if let Incoming::Command(Command::Error { reason }) = incoming {
                    return Err(ZmtpError::Refused(reason));
                }
                return Ok(Some(incoming));
            }
            self.buffer.reserve(CHUNK);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// What goes to the peer.
pub struct Writer {
    stream: WriteHalf<BoxedStream>,
    buffer: BytesMut,
}

impl Writer {
    /// Sends a message. After a dropped future the connection is of no more use.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, message: &[Bytes]) -> Result<(), ZmtpError> {
        self.buffer.clear();
        encode_message(message, &mut self.buffer);
        self.stream.write_all(&self.buffer).await?;
        self.stream.flush().await?;
        if self.buffer.capacity() > 16 * CHUNK {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Answers a PING, as [`Writer::send`].
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn pong(&mut self, context: &[u8]) -> Result<(), ZmtpError> {
        self.stream.write_all(&encode_pong(context)).await?;
        Ok(self.stream.flush().await?)
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}
