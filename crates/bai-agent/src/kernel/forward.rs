//! Connections to a kernel's services: accepted on the host, continued inside its session through a socket of the
//! session's own network, which its runner gives out.
//!
//! Invariants: bytes pass as they come and no faster than they are taken, each direction ends by itself; a connection
//! costs [`BUFFER`] bytes for each direction, two descriptors and nothing of the runner; a kernel has at most
//! [`MAX_CONNECTIONS`]; only the kernel's declared ports are reached; traffic is use of the kernel.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bai_model::KernelId;
use bai_proto::agent::ServicePort;
use bai_proto::descriptor::Descriptor;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::host::Host;
use crate::runtime::KernelSpec;

const BUFFER: usize = 16 << 10;
/// Of one kernel, over all its services.
pub(crate) const MAX_CONNECTIONS: usize = 512;
/// Within a session; whoever takes longer has a full queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A peer that has vanished is noticed after some of these.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Pause after the system had no more descriptors or memory for a connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Carries the connections of one life of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    host: Arc<Host>,
    spec: Arc<KernelSpec>,
    ended: CancellationToken,
    places: Arc<Semaphore>,
}

impl Forwarder {
    pub fn new(host: &Arc<Host>, spec: &KernelSpec, ended: &CancellationToken) -> Self {
        Self {
            host: Arc::clone(host),
            spec: Arc::new(spec.clone()),
            ended: ended.clone(),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Takes the connections to one service.
    pub async fn serve(&self, port: &ServicePort, listener: &TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(kernel.id = %self.spec.kernel, %error, "a connection could not be accepted");
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            };
            let place = Arc::clone(&self.places).try_acquire_owned();
            let (true, Ok(place)) = (self.host.allow.admits(peer.ip()), place) else {
                tracing::warn!(
                    kernel.id = %self.spec.kernel, service = port.name, peer.addr = %peer,
                    "a connection was refused: its address is not on the allow-list, or there are {MAX_CONNECTIONS} already"
                );
                reset(&stream);
                continue;
            };
            let (forwarder, container_port) = (self.clone(), port.container_port);
            self.host
                .tasks
                .spawn_until_stopped("service connection", async move {
                    let _place = place;
                    let carried = forwarder.carry(stream, container_port);
                    if let Some(Err(error)) = forwarder.ended.run_until_cancelled(carried).await {
                        let kernel = forwarder.spec.kernel;
                        tracing::debug!(kernel.id = %kernel, peer.addr = %peer, %error, "a connection to a service broke");
                    }
                });
        }
    }

    async fn carry(&self, outside: TcpStream, port: u16) -> io::Result<()> {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        SockRef::from(&outside).set_tcp_keepalive(&keepalive)?;
        outside.set_nodelay(true)?;
        let inside = match self.connect(port).await {
            Ok(inside) => inside,
            Err(error) => {
                // To whoever has connected it is as if nobody had listened.
                reset(&outside);
                return Err(error);
            }
        };
        inside.set_nodelay(true)?;
        let (mut outside, mut inside) = (self.noticed(outside), self.noticed(inside));
        copy_bidirectional_with_sizes(&mut outside, &mut inside, BUFFER, BUFFER).await?;
        Ok(())
    }

    /// Connects inside the session.
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let runtime = &self.host.runtime;
        let socket = runtime.descriptor(&self.spec, Descriptor::Socket).await?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
        tokio::time::timeout(CONNECT_DEADLINE, connecting).await?
    }

    fn noticed<S>(&self, stream: S) -> Noticed<S> {
        Noticed {
            stream,
            host: Arc::clone(&self.host),
            kernel: self.spec.kernel,
        }
    }
}

/// Makes a connection end as one that is refused ends.
fn reset(stream: &TcpStream) {
    // Without it the connection ends in order, which says less.
    _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// A stream whose bytes are use of a kernel.
struct Noticed<S> {
    stream: S,
    host: Arc<Host>,
    kernel: KernelId,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noticed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.host.note_use(self.kernel);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noticed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
