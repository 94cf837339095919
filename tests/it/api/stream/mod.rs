//! Streams over real sockets, a file for each kind.

mod ends;
mod events;
mod execute;
mod proxy;
mod pty;

use std::time::Duration;

use bai_testkit::{Api, Role};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

type Stream = WebSocketStream<TcpStream>;

/// Opens a websocket at a server of its own.
async fn open(api: &Api, role: Role, target: &str) -> Result<Stream, Error> {
    let address = api.listen().await;
    api.open_stream(address, role, target).await
}

/// What a server says that refuses: status and title.
async fn refusal(api: &Api, role: Role, target: &str) -> (u16, String) {
    match open(api, role, target).await {
        Err(Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let title = body["title"].as_str().unwrap_or_default();
            (answer.status().as_u16(), title.to_owned())
        }
        other => panic!("{target}: {other:?}"),
    }
}

/// The next message.
async fn message(stream: &mut Stream) -> Message {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    match message.expect("a message in time") {
        Some(Ok(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// The next frame: JSON, or the code of a close.
async fn next(stream: &mut Stream) -> Value {
    match message(stream).await {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        Message::Close(Some(close)) => json!({ "closed": u16::from(close.code) }),
        other => panic!("{other:?}"),
    }
}

/// Reads until the close, and gives its code.
async fn close_code(stream: &mut Stream) -> u16 {
    loop {
        if let Message::Close(close) = message(stream).await {
            return close.map_or(1005, |close| close.code.into());
        }
    }
}
