//! `GET /stream/kernel/{session}/httpproxy` and `/tcpproxy` (`http-api.md` 4.9.3): a tunnel of bytes between a websocket and
//! a service of a session, the same for both; and `/apps`, which lists the services (`clients.md` 11.3, item 16).
//!
//! Each direction reads only what the other end has taken, so that a tunnel holds one message of the client and one chunk
//! of the service at most, and nothing but its sockets while nothing happens. An end that takes nothing for
//! [`crate::STALL_LIMIT`] ends it.

use std::io::ErrorKind;
use std::time::Duration;

use bai_core::stream::{ServiceStream, SessionStream};
use bytes::BytesMut;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use super::socket::{End, Handshake, Received, Receiver, Sender, Socket};
use crate::body::json as answer;
use crate::error::Problem;
use crate::params;
use crate::pipeline::{Answer, Call};
use crate::stall::Stalling;

/// What is read of a service at once.
const CHUNK: usize = 8 << 10;
/// How long a service may go on saying what nobody hears, until its connection is cut.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let session = super::session(&call);
    let app = params::query_value(call.query(), "app");
    let handshake = Handshake::of(&mut call.parts);
    let manager = &call.gateway.manager;
    let opened = manager.session_open_service(&call.op, &session, app.as_deref());
    let service = opened.await?;
    let stopping = call.gateway.stopping.clone();
    Ok(handshake?.accept(move |socket| tunnel(service, socket, stopping)))
}

/// Which services there are.
pub(crate) async fn apps(call: Call) -> Result<Answer, Problem> {
    let session = super::session(&call);
    let services = call.gateway.manager.session_services(&call.op, &session).await?;
    let view: Vec<Value> = services
        .into_iter()
        .map(|service| {
            json!({ "name": service.name, "protocol": service.protocol, "ports": [service.container_port] })
        })
        .collect();
    answer(StatusCode::OK, &view)
}

async fn tunnel(service: ServiceStream, mut socket: Socket, stopping: CancellationToken) {
    let (mut from, mut to) = match service.connect().await {
        Ok(connected) => {
            let peer = connected.peer_addr().ok();
            let (from, to) = connected.into_split();
            (from, Stalling::new(to, peer))
        }
        Err(error) => {
            tracing::debug!(kernel.id = %service.stream.kernel(), %error, "a service cannot be reached");
            let reason = format!("the service cannot be reached: {}", error.kind());
            return socket.end(End::Close(CloseCode::Error, reason.into())).await;
        }
    };
    let end = tokio::select! {
        end = to_service(&mut socket.receiver, &mut to, &service.stream) => end,
        end = to_client(&mut from, &mut socket.sender, &service.stream) => end,
        end = service.stream.ended() => End::of(end, CloseCode::Away),
        () = stopping.cancelled() => End::stopping(),
    };
    // What the client said last must not be lost to a reset.
    let is_closed = matches!(end, End::Closed);
    let parting = async {
        if is_closed && to.shutdown().await.is_ok() {
            let mut rest = BytesMut::with_capacity(CHUNK);
            while let Ok(1..) = from.read_buf(&mut rest).await {
                rest.clear();
            }
        }
    };
    tokio::join!(socket.end(end), async {
        _ = tokio::time::timeout(LINGER, parting).await
    });
}

async fn to_service(
    receiver: &mut Receiver,
    service: &mut Stalling<OwnedWriteHalf>,
    stream: &SessionStream,
) -> End {
    loop {
        match receiver.next().await {
            Ok(Received::Binary(bytes)) => {
                stream.keep_busy();
                match service.write_all(&bytes).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        tracing::info!(kernel.id = %stream.kernel(), %error, "a service does not read; its tunnel is closed");
                        return End::Close(CloseCode::Error, "the service does not read".into());
                    }
                    Err(_) => return End::Close(CloseCode::Away, "the service has closed".into()),
                }
            }
            Ok(Received::Ping) => stream.keep_busy(),
            // No part of the tunnel.
            Ok(Received::Text(_)) => {}
            Err(end) => return end,
        }
    }
}

async fn to_client(service: &mut OwnedReadHalf, sender: &mut Sender, stream: &SessionStream) -> End {
    let closed = || End::Close(CloseCode::Away, "the service has closed".into());
    loop {
        // Room for a chunk only when there is one.
        if service.readable().await.is_err() {
            return closed();
        }
        let mut chunk = BytesMut::with_capacity(CHUNK);
        match service.try_read_buf(&mut chunk) {
            Ok(0) => return closed(),
            Ok(_) => {
                stream.keep_busy();
                if let Err(end) = sender.binary(chunk.freeze()).await {
                    return end;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return closed(),
        }
    }
}
