//! What a session of the scripted agent offers on real ports: services over TCP, and a terminal over ZeroMQ.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bai_proto::agent::ServicePort;
use bai_proto::pty::TerminalServer;
use bai_proto::zmtp::AllowList;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Bytes that `flood` has to say.
pub const FLOOD: usize = 64 << 20;

/// Ports that are served for as long as the test runs.
///
/// `echo` (http) gives back what it gets; `greeter` (tcp) says `hello` and closes; `flood` (tcp) says [`FLOOD`] zeros;
/// `deaf` (tcp) reads nothing; nobody listens at `closed` (tcp); `broken` (http) does not start; `shell` is a pty and `radio` is udp.
#[derive(Debug)]
pub struct Services {
    ports: Vec<ServicePort>,
    connections: Arc<AtomicUsize>,
    flooded: Arc<AtomicUsize>,
}

async fn bind() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// Serves every connection on its own.
async fn serve<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, port) = bind().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

impl Services {
    /// Opens the ports.
    pub async fn open() -> Self {
        let (connections, flooded) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let open = Arc::clone(&connections);
        let echo = serve(move |mut stream| {
            let open = Arc::clone(&open);
            open.fetch_add(1, Ordering::Relaxed);
            async move {
                let (mut reader, mut writer) = stream.split();
                // An error is an end as well.
                _ = tokio::io::copy(&mut reader, &mut writer).await;
                open.fetch_sub(1, Ordering::Relaxed);
            }
        });
        let greeter = serve(|mut stream| async move {
            _ = stream.write_all(b"hello").await;
        });
        let count = Arc::clone(&flooded);
        let flood = serve(move |mut stream| {
            let count = Arc::clone(&count);
            async move {
                let zeros = [0; 8192];
                for _ in 0..FLOOD / zeros.len() {
                    if stream.write_all(&zeros).await.is_err() {
                        return;
                    }
                    count.fetch_add(zeros.len(), Ordering::Relaxed);
                }
                // Until the other end has read it all.
                _ = stream.shutdown().await;
                _ = stream.read(&mut [0]).await;
            }
        });
        let deaf = serve(|stream| async move {
            let _open = stream;
            std::future::pending().await
        });
        let (echo, greeter, flood, deaf) = (echo.await, greeter.await, flood.await, deaf.await);
        // It goes with its listener.
        let (_, closed) = bind().await;
        let port = |name: &str, protocol: &str, host_port| ServicePort {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            container_port: 8080,
            host_port,
        };
        Self {
            ports: vec![
                port("echo", "http", echo),
                port("greeter", "tcp", greeter),
                port("flood", "tcp", flood),
                port("deaf", "tcp", deaf),
                port("closed", "tcp", closed),
                port("broken", "http", closed),
                port("shell", "pty", closed),
                port("radio", "udp", closed),
            ],
            connections,
            flooded,
        }
    }

    pub fn ports(&self) -> Vec<ServicePort> {
        self.ports.clone()
    }

    /// Connections that `echo` has at the moment.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes that `flood` could write so far.
    pub fn flooded(&self) -> usize {
        self.flooded.load(Ordering::Relaxed)
    }
}

/// Starts a terminal that prints what is typed after `<life>> `; gives its two ports.
pub async fn terminal(life: u32) -> (u16, u16) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (server, mut typed, printed) = TerminalServer::bind(any, any, AllowList::default())
        .await
        .expect("two ports");
    let (input, output) = server.local_addrs().expect("addresses");
    tokio::spawn(server.run(CancellationToken::new()));
    tokio::spawn(async move {
        while let Some(keys) = typed.recv().await {
            let line = [format!("{life}> ").as_bytes(), &keys].concat();
            // Nobody need look.
            _ = printed.send(Bytes::from(line));
        }
    });
    (input.port(), output.port())
}
