//! Serving connections: HTTP/1.1, plain or in TLS, with limits on headers, time and number, and a graceful end.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::MapRequest;

use crate::stall::Stalling;

/// Connections at once. Beyond that, new ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 10_000;
/// A request line and its headers must fit into this (the original allows 8190 bytes a line).
const MAX_HEADER_BYTES: usize = 64 << 10;
/// How long a client may take to send its headers, and how long a connection is kept between requests (`http-api.md`
/// 1.1).
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are being served may take to end once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// After so long without a byte a client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// And then so often, until it is held to be gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The connection that a request came on, which requests carry along for those that turn it into something else.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    permit: Arc<OwnedSemaphorePermit>,
    connections: TaskTracker,
}

impl Connection {
    /// Goes on with the connection when its requests have ended: it counts as one, and is waited for when the server stops,
    /// until `work` has.
    pub(crate) fn go_on(self, work: impl Future<Output = ()> + Send + 'static) {
        let permit = self.permit;
        self.connections.spawn(async move {
            work.await;
            drop(permit);
        });
    }
}

/// How connections are served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `None`: in clear.
    pub tls: Option<Arc<ServerConfig>>,
    /// How long requests that are being served may take to end once the server stops.
    pub drain: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            tls: None,
            drain: DRAIN_TIMEOUT,
        }
    }
}

/// [`serve_with`] the default options.
pub async fn serve(listener: TcpListener, router: axum::Router, stopping: CancellationToken) {
    serve_with(listener, router, ServeOptions::default(), stopping).await;
}

/// Serves until `stopping` is cancelled, then lets running requests end.
pub async fn serve_with(
    listener: TcpListener,
    router: axum::Router,
    options: ServeOptions,
    stopping: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let acceptor = options.tls.map(TlsAcceptor::from);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES);
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (permit, stream) = match accepted {
            (Ok(permit), Ok((stream, _))) => (permit, stream),
            // The semaphore is never closed.
            (Err(_), _) => break,
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors: others must close first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        // Streams may be silent for hours.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_INTERVAL);
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "TCP keep-alive was refused");
        }
        let peer = stream.peer_addr().ok();
        let stream = Stalling::new(stream, peer);
        let connection = Connection {
            permit: Arc::new(permit),
            connections: connections.clone(),
        };
        let (builder, router) = (builder.clone(), router.clone());
        let (acceptor, stopping) = (acceptor.clone(), stopping.clone());
        connections.spawn(async move {
            match acceptor {
                None => serve_connection(&builder, stream, router, connection, stopping).await,
                Some(acceptor) => {
                    let agreed = tokio::select! {
                        () = stopping.cancelled() => return,
                        agreed = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => agreed,
                    };
                    match agreed {
                        Ok(Ok(stream)) => {
                            serve_connection(&builder, stream, router, connection, stopping).await
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "a client did not agree on TLS"),
                        Err(_) => tracing::debug!("a client took too long to agree on TLS"),
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(options.drain, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time and were cut off");
    }
}

/// Serves one connection until it ends, which it does after the request that is running when `stopping` is cancelled.
async fn serve_connection(
    builder: &http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: axum::Router,
    itself: Connection,
    stopping: CancellationToken,
) {
    let service = TowerToHyperService::new(MapRequest::new(router, move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(itself.clone());
        request
    }));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = connection.with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::stall::STALL_LIMIT;

    /// A server that greets, and its switch.
    async fn greeter() -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stopping = CancellationToken::new();
        let router = axum::Router::new().fallback(async || "hello");
        tokio::spawn(serve(listener, router, stopping.clone()));
        (address, stopping)
    }

    /// All that the server says to these bytes until it closes.
    async fn said(address: SocketAddr, bytes: &[u8]) -> String {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        // The server may have closed before it read everything.
        _ = socket.write_all(bytes).await;
        let mut answer = Vec::new();
        _ = socket.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Time stands still but for time-outs: they pass at once when nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn clients_that_never_end_their_headers_are_cut_off() {
        let (address, _) = greeter().await;
        let started = tokio::time::Instant::now();
        for bytes in [&b""[..], b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n"] {
            let answer = said(address, bytes).await;
            assert!(!answer.contains("hello"), "{answer}");
        }
        assert!(started.elapsed() >= 3 * HEADER_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_never_read_are_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let ended = CancellationToken::new();
        let guard = ended.clone();
        let router = axum::Router::new().fallback(async move || {
            let zeros = futures_util::stream::unfold(guard.drop_guard(), |guard| async move {
                let chunk = bytes::Bytes::from_static(&[0; 64 << 10]);
                Some((Ok::<_, std::convert::Infallible>(chunk), guard))
            });
            axum::body::Body::from_stream(zeros)
        });
        tokio::spawn(serve(listener, router, CancellationToken::new()));
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("a request");
        let began = tokio::time::Instant::now();
        let cut = tokio::time::timeout(10 * STALL_LIMIT, ended.cancelled()).await;
        assert!(cut.is_ok() && began.elapsed() >= STALL_LIMIT);
    }

    #[tokio::test]
    async fn heads_beyond_their_limits_are_refused() {
        let (address, _) = greeter().await;
        // The limit is looked at between reads, so that somewhat more may pass.
        let long = "x".repeat(4 * MAX_HEADER_BYTES);
        for (request, status) in [
            (format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n"), "431"),
            (
                format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000)),
                "431",
            ),
            (format!("GET /{long} HTTP/1.1\r\n\r\n"), "431"),
            ("GET / HTTP/1.1\r\nA b\r\n\r\n".to_owned(), "400"),
            ("\0\r\n\r\n".to_owned(), "400"),
        ] {
            let answer = said(address, request.as_bytes()).await;
            let shown: String = request.chars().take(40).collect();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{shown:?}: {answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn connections_are_kept_and_end_with_the_server() {
        let (address, stopping) = greeter().await;
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        for _ in 0..2 {
            socket
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .expect("a connection that is kept");
            let mut answer = Vec::new();
            while !answer.ends_with(b"hello") {
                assert_ne!(socket.read_buf(&mut answer).await.expect("an answer"), 0);
            }
        }
        stopping.cancel();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.expect("an end");
        assert!(rest.is_empty());
    }
}
