//! Writing to somebody who may never read.
//!
//! Back-pressure makes a writer wait for its reader, however slow that is. One that takes nothing at all for
//! [`STALL_LIMIT`] is held to be gone: the write fails, and with it what the connection is for. A connection on which nothing
//! waits to be written is never looked at.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a reader may take nothing of what waits for it.
pub const STALL_LIMIT: Duration = Duration::from_secs(300);

/// A connection whose writes fail when they come to a standstill.
#[derive(Debug)]
pub(crate) struct Stalling<S> {
    stream: S,
    /// For the log.
    peer: Option<SocketAddr>,
    /// Runs while a write waits.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    pub fn new(stream: S, peer: Option<SocketAddr>) -> Self {
        Self {
            stream,
            peer,
            limit: None,
        }
    }

    /// Counts the time while nothing is written.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.limit = None;
            return written;
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        ready!(limit.as_mut().poll(cx));
        tracing::info!(peer.addr = ?self.peer, limit = ?STALL_LIMIT, "a connection is cut: its other end reads nothing");
        let text = format!("nothing was read for {STALL_LIMIT:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut near = Stalling::new(near, None);
        let began = Instant::now();
        let error = near.write_all(&[0; 17]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= STALL_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_may_be_slow_and_a_connection_idle() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Stalling::new(near, None);
        let reading = async {
            for _ in 0..32 {
                sleep(STALL_LIMIT - Duration::from_secs(1)).await;
                far.read_u8().await.expect("a byte");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 32]), reading);
        written.expect("it was read, though slowly");
        sleep(10 * STALL_LIMIT).await;
        near.write_all(&[0; 16]).await.expect("nothing waited");
    }
}
