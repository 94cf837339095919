//! Ring 6: a terminal and a service of a real session, through the executable's websockets.

use std::time::Duration;

use bai::system::SystemClock;
use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use bai_model::time::Clock;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{NaiveDate, SecondsFormat};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::server::{Up, stdout};

type Stream = WebSocketStream<TcpStream>;

/// A websocket signed by the server's ordinary user.
async fn open(up: &Up, target: &str) -> Stream {
    let host = up
        .setting("BACKEND_ENDPOINT")
        .trim_start_matches("http://")
        .to_owned();
    let mut request = format!("ws://{host}{target}").into_client_request().unwrap();
    let text = SystemClock.now().to_rfc3339_opts(SecondsFormat::Micros, false);
    let headers = request.headers_mut();
    headers.insert("date", text.parse().unwrap());
    headers.insert("x-backendai-version", "v4.20190615".parse().unwrap());
    let signature = sign(&Signed {
        algorithm: Algorithm::Sha256,
        secret_key: up.setting("BACKEND_SECRET_KEY"),
        signature: "",
        date: &date::parse(&text, NaiveDate::MIN).unwrap(),
        method: "GET",
        target,
        headers,
        body: b"",
    });
    let access_key = up.setting("BACKEND_ACCESS_KEY");
    let authorization = format!("BackendAI signMethod=HMAC-SHA256, credential={access_key}:{signature}");
    headers.insert("authorization", authorization.parse().unwrap());
    let socket = TcpStream::connect(&host).await.unwrap();
    tokio_tungstenite::client_async(request, socket).await.unwrap().0
}

async fn message(stream: &mut Stream) -> Message {
    let message = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
    message
        .expect("a message in time")
        .expect("a message")
        .expect("a message")
}

async fn type_in(stream: &mut Stream, keys: &str) {
    let frame = json!({ "type": "stdin", "chars": BASE64.encode(keys) });
    stream.send(Message::text(frame.to_string())).await.unwrap();
}

/// Reads what a terminal prints until this is among it.
async fn until_printed(stream: &mut Stream, wanted: &str) {
    let mut all = String::new();
    while !all.contains(wanted) {
        let Message::Text(text) = message(stream).await else {
            panic!("no {wanted} in {all}")
        };
        let frame: Value = serde_json::from_str(&text).unwrap();
        let data = BASE64.decode(frame["data"].as_str().unwrap()).unwrap();
        all.push_str(&String::from_utf8_lossy(&data));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_a_service_of_a_real_session() {
    let up = Up::start();
    let code = "import http.server, threading\n\
                class Hello(http.server.BaseHTTPRequestHandler):\n\
                \x20   def do_GET(self):\n\
                \x20       self.send_response(200); self.end_headers(); self.wfile.write(b'hello ' + self.path.encode())\n\
                server = http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Hello)\n\
                threading.Thread(target=server.serve_forever, daemon=True).start()\n\
                print('serving')";
    let started = up.run(&["python", "-q", "-t", "reached", "-c", code]);
    assert_eq!(stdout(&started), "serving\n");

    let mut stream = open(&up, "/stream/kernel/reached/httpproxy?app=web").await;
    let request = "GET /through HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream
        .send(Message::binary(request.as_bytes().to_vec()))
        .await
        .unwrap();
    let mut answer = Vec::new();
    let code = loop {
        match message(&mut stream).await {
            Message::Binary(bytes) => answer.extend_from_slice(&bytes),
            Message::Close(close) => break close.map(|close| u16::from(close.code)),
            other => panic!("{other:?}"),
        }
    };
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.0 200") && answer.ends_with("hello /through"),
        "{answer}"
    );
    assert_eq!(code, Some(1001));

    let mut stream = open(&up, "/stream/kernel/reached/pty").await;
    let resize = json!({ "type": "resize", "rows": 33, "cols": 111 });
    stream.send(Message::text(resize.to_string())).await.unwrap();
    type_in(&mut stream, "echo $((6*7))-here\n").await;
    until_printed(&mut stream, "42-here").await;
    type_in(
        &mut stream,
        "while [ \"$(stty size)\" != '33 111' ]; do :; done; echo si''zed\n",
    )
    .await;
    until_printed(&mut stream, "sized").await;
    // As a shell does that was about to write the size it had read when the window changed.
    type_in(
        &mut stream,
        "until [ \"$(stty size)\" = '34 112' ]; do :; done; stty rows 33 cols 111; echo put back; \
         until [ \"$(stty size)\" = '34 112' ]; do :; done; echo ke''pt\n",
    )
    .await;
    let resize = json!({ "type": "resize", "rows": 34, "cols": 112 });
    stream.send(Message::text(resize.to_string())).await.unwrap();
    until_printed(&mut stream, "kept").await;
    type_in(&mut stream, "mark=old\n").await;
    stream
        .send(Message::text(json!({ "type": "restart" }).to_string()))
        .await
        .unwrap();
    // The new shell does not know what the old one was told. Keys that the old one had not heard are gone with it.
    let answered = async {
        loop {
            type_in(&mut stream, "echo ${mark:-new}-shell\n").await;
            let printed = until_printed(&mut stream, "new-shell");
            if tokio::time::timeout(Duration::from_millis(500), printed)
                .await
                .is_ok()
            {
                return;
            }
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
    answered.expect("an answer of the new shell");

    let stopped = tokio::task::spawn_blocking(move || up.stop("-TERM"));
    let code = loop {
        if let Message::Close(close) = message(&mut stream).await {
            break close.map(|close| u16::from(close.code));
        }
    };
    assert_eq!(code, Some(1001));
    drop(stream);
    stopped.await.unwrap();
}
