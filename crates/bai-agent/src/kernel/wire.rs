//! The two ways to a runner: a stream of frames to ours, and two ZeroMQ connections, one for each direction, to that of
//! an agent of 19.06 (`agent-protocol.md` 6.3). What the frames say is the same.
//!
//! Not here: when a connection is made and made again (`client`).

use std::net::SocketAddr;

use bai_proto::runner::{Frame, FrameError, MAX_DATA};
use bai_proto::zmtp::{self, DialError, Endpoint, Incoming, Limits, SocketType, ZmtpError};
use bytes::Bytes;
use tokio::io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

use crate::runtime::{KernelSpec, Runner, RunnerStream, Runtime, RuntimeError};

/// A frame's type and its data. The original's runner knows no limit of its own; what is longer ends the connection.
const LIMITS: Limits = Limits {
    frames: 2,
    bytes: MAX_DATA + 64,
};

/// What goes to a runner.
pub(crate) enum Outgoing {
    Stream(WriteHalf<Box<dyn RunnerStream>>),
    /// The other half tells nothing but the end.
    Push(zmtp::Writer, zmtp::Reader),
}

/// What comes from a runner.
pub(crate) enum Arriving {
    Stream(BufReader<ReadHalf<Box<dyn RunnerStream>>>),
    Pull(zmtp::Reader),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Zmtp(#[from] ZmtpError),
}

/// Connects to the runner of a kernel.
pub(crate) async fn connect(
    runtime: &dyn Runtime,
    spec: &KernelSpec,
) -> Result<(Outgoing, Arriving), ConnectError> {
    match spec.runner {
        Runner::Own => {
            let (reader, writer) = tokio::io::split(runtime.connect(spec).await?);
            Ok((Outgoing::Stream(writer), Arriving::Stream(BufReader::new(reader))))
        }
        Runner::Published { input, output } => {
            // Answers first: what is asked for is not answered to nobody.
            let output = dial(output, SocketType::Pull).await?;
            let input = dial(input, SocketType::Push).await?;
            Ok((
                Outgoing::Push(input.writer, input.reader),
                Arriving::Pull(output.reader),
            ))
        }
    }
}

async fn dial(address: SocketAddr, ours: SocketType) -> Result<zmtp::Connection, DialError> {
    let endpoint = Endpoint {
        host: address.ip().to_string(),
        port: address.port(),
    };
    zmtp::dial(&endpoint, ours, LIMITS, None).await
}

impl Outgoing {
    pub async fn send(&mut self, frame: &Frame) -> Result<(), WireError> {
        match self {
            Self::Stream(stream) => {
                stream
                    .write_all(&frame.encode())
                    .await
                    .map_err(FrameError::from)?;
                stream.flush().await.map_err(FrameError::from)?;
            }
            Self::Push(writer, _) => {
                let parts = [
                    Bytes::copy_from_slice(frame.kind.as_bytes()),
                    Bytes::copy_from_slice(&frame.data),
                ];
                writer.send(&parts).await?;
            }
        }
        Ok(())
    }

    /// Resolves when there is nobody to send to any more, where that can be seen here. Cancel-safe.
    pub async fn lost(&mut self) -> Result<(), WireError> {
        match self {
            // The other half sees it.
            Self::Stream(_) => std::future::pending().await,
            Self::Push(_, reader) => {
                while reader.next().await?.is_some() {}
                Ok(())
            }
        }
    }
}

impl Arriving {
    /// The next frame; `None` at the orderly end. Not cancel-safe: a dropped future may have read half a frame.
    pub async fn next(&mut self) -> Result<Option<Frame>, WireError> {
        match self {
            Self::Stream(stream) => Ok(Frame::read_async(stream).await?),
            Self::Pull(reader) => {
                while let Some(arrived) = reader.next().await? {
                    // Of 19.06's sockets none asks whether we live.
                    let Incoming::Message(parts) = arrived else {
                        continue;
                    };
                    match Frame::from_parts(&parts) {
                        Ok(frame) => return Ok(Some(frame)),
                        // One that is no record is no reason to be without the others.
                        Err(error) => tracing::warn!(%error, "a runner's message cannot be read"),
                    }
                }
                Ok(None)
            }
        }
    }
}
