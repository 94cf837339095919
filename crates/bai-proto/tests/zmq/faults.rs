//! Peers that are broken, hostile, silent, or gone.

use std::net::SocketAddr;
use std::sync::Arc;

use bai_proto::agent::{AgentError, AgentRpc};
use bai_proto::msgpack;
use bai_proto::rpc::ZmqAgent;
use bai_proto::zmtp::{AllowList, Connection, Decoder, Incoming, SocketType, encode_ready, greeting};
use bytes::{Bytes, BytesMut};
use rmpv::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    LIMITS, Raw, Serving, Stub, agent_options, endpoint, kernel, loopback, query, server_options, soon,
};

fn header(id: u32) -> Vec<u8> {
    let mut header = vec![0; 16];
    header[4..8].copy_from_slice(&id.to_le_bytes());
    header
}

fn is_connection_error(error: &AgentError) -> bool {
    matches!(error, AgentError::Exception { kind, .. } if kind == "ConnectionError")
}

#[tokio::test]
async fn malformed_calls_get_no_answer_and_later_ones_do() {
    let stub = Arc::new(Stub::default());
    let server = Serving::start(stub.clone(), server_options()).await;
    let mut peer = server.dealer().await;
    let deep = [&[0x91; 5000][..], &[0xc0]].concat();
    let wide = b"\xdd\xff\xff\xff\xff";
    let bad: &[&[&[u8]]] = &[
        &[b"one"],
        &[&header(1), b"reset_agent", &[0x90]],
        &[&[0; 17], b"reset_agent", &[0x90], &[0x80]],
        &[&header(1), b"\xff\xfe", &[0x90], &[0x80]],
        &[&header(1), &[b'x'; 300], &[0x90], &[0x80]],
        &[&header(1), b"reset_agent", &[0x80], &[0x80]],
        &[&header(1), b"reset_agent", &[0x90], &[0x90]],
        &[&header(1), b"reset_agent", &[], &[0x80]],
        &[&header(1), b"reset_agent", &[0x90, 0x90], &[0x80]],
        // What Python would evaluate.
        &[&header(1), b"reset_agent", b"\x91\xc7\x02\x7f\x00\x00", &[0x80]],
        &[&header(1), b"reset_agent", &[0x90], b"\x81\xa1a\xd4\x7b\x00"],
        &[&header(1), b"ping", b"\x91\xa1\xff", &[0x80]],
        &[&header(1), b"reset_agent", &deep, &[0x80]],
        &[&header(1), b"reset_agent", wide, &[0x80]],
    ];
    for frames in bad {
        peer.send(frames).await;
    }
    peer.send(&[&header(77), b"ping", b"\x91\xa1x", &[0x80]]).await;
    let reply = peer.recv().await.expect("a reply");
    assert_eq!(reply[0][4..8], 77_u32.to_le_bytes());
    assert_eq!(stub.noted(), Vec::<String>::new());
}

#[tokio::test]
async fn frames_that_are_too_large_or_too_many_end_their_connection_alone() {
    let server = Serving::start(Arc::new(Stub::default()), server_options()).await;
    let client = server.client();
    soon(client.ping()).await.expect("an answer");
    let huge = [&[2][..], &(1_u64 << 46).to_be_bytes()].concat();
    let many = [1, 0].repeat(100);
    let reserved = vec![0x80, 0];
    for bytes in [huge, many, reserved] {
        let mut stream = shaken(server.address).await;
        stream.write_all(&bytes).await.expect("an open connection");
        assert_closed(&mut stream).await;
    }
    soon(client.ping()).await.expect("an answer");
}

#[tokio::test]
async fn peers_that_speak_something_else_are_turned_away() {
    let server = Serving::start(Arc::new(Stub::default()), server_options()).await;
    let mut curve = greeting();
    curve[12..32].copy_from_slice(b"CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut old = greeting();
    old[10] = 1;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0x16, 3, 1],
        &curve,
        &old,
    ] {
        let mut stream = TcpStream::connect(server.address).await.expect("a listener");
        stream.write_all(bytes).await.expect("an open connection");
        assert_closed(&mut stream).await;
    }
    // A PUSH where a DEALER belongs.
    let wrong = bai_proto::zmtp::dial(&endpoint(server.address), SocketType::Push, LIMITS, None).await;
    let mut stream = match wrong {
        Ok(_) => panic!("a PUSH was let in"),
        Err(error) => {
            assert!(error.to_string().contains("ROUTER"), "{error}");
            TcpStream::connect(server.address).await.expect("a listener")
        }
    };
    stream.write_all(&greeting()).await.expect("an open connection");
    stream
        .write_all(&encode_ready(SocketType::Push))
        .await
        .expect("an open connection");
    assert_closed(&mut stream).await;
    soon(server.client().ping()).await.expect("an answer");
}

/// A stream after a DEALER's handshake.
async fn shaken(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    stream.write_all(&greeting()).await.expect("an open connection");
    stream
        .write_all(&encode_ready(SocketType::Dealer))
        .await
        .expect("an open connection");
    let mut answer = vec![0; 64 + encode_ready(SocketType::Router).len()];
    soon(stream.read_exact(&mut answer)).await.expect("a handshake");
    stream
}

async fn assert_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // Closed or reset, but not left open.
    _ = soon(stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn a_peer_off_the_allow_list_is_not_served() {
    let mut options = server_options();
    options.allow = AllowList::parse(["10.0.0.0/8"]).expect("a network");
    let server = Serving::start(Arc::new(Stub::default()), options).await;
    let dialed = bai_proto::zmtp::dial(&endpoint(server.address), SocketType::Dealer, LIMITS, None).await;
    assert!(dialed.is_err());
    let mut options = server_options();
    options.allow = AllowList::parse(["10.0.0.0/8", "127.0.0.1"]).expect("networks");
    let server = Serving::start(Arc::new(Stub::default()), options).await;
    soon(server.client().ping()).await.expect("an answer");
}

#[tokio::test]
async fn calls_of_one_peer_are_bounded_and_of_another_go_on() {
    let stub = Arc::new(Stub::default());
    let mut options = server_options();
    options.max_calls = 2;
    let server = Serving::start(stub.clone(), options).await;
    let first = Arc::new(server.client());
    let hanging: Vec<_> = (0..3)
        .map(|_| {
            let client = Arc::clone(&first);
            tokio::spawn(async move { client.execute(kernel(), query("hang")).await })
        })
        .collect();
    stub.calls_come_to(2).await;
    // Another peer is not kept waiting, and by its answer the third call would long have begun.
    let second = server.client();
    let reply = soon(second.execute(kernel(), query("print")))
        .await
        .expect("a reply");
    assert!(reply.is_some());
    assert_eq!(stub.noted(), ["execute hang", "execute hang", "execute print"]);
    stub.release.notify_one();
    stub.calls_come_to(4).await;
    stub.release.notify_one();
    stub.release.notify_waiters();
    for call in hanging {
        stub.release.notify_one();
        soon(call).await.expect("no panic").expect("a reply");
    }
}

#[tokio::test]
async fn every_kind_of_failure_is_an_answer() {
    let server = Serving::start(Arc::new(Stub::default()), server_options()).await;
    let client = server.client();
    let execute = |code: &'static str| soon(client.execute(kernel(), query(code)));
    assert_eq!(execute("none").await, Ok(None));
    assert_eq!(execute("timeout").await, Err(AgentError::Timeout));
    assert_eq!(
        execute("fail").await,
        Err(AgentError::exception("RuntimeError", "it's broken"))
    );
    let panicked = execute("panic").await.expect_err("an error");
    assert!(panicked.repr().starts_with("RuntimeError("), "{panicked}");
    assert_eq!(
        soon(client.get_logs(kernel())).await,
        Err(AgentError::exception("KeyError", kernel().to_string()))
    );
}

#[tokio::test]
async fn a_peer_that_dies_fails_its_calls_at_once_and_is_found_again() {
    let stub = Arc::new(Stub::default());
    let server = Serving::start(stub.clone(), server_options()).await;
    let address = server.address;
    let client = Arc::new(server.client());
    let waiting = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.execute(kernel(), query("hang")).await })
    };
    stub.calls_come_to(1).await;
    server.stop().await;
    let error = soon(waiting).await.expect("no panic").expect_err("a lost call");
    assert!(is_connection_error(&error), "{error}");
    assert!(error.to_string().contains("unknown"), "{error}");

    let again = Arc::new(Stub::default());
    let server = Serving::at(address, again.clone(), server_options()).await;
    soon(client.ping())
        .await
        .expect("an answer of the restarted peer");
    soon(client.destroy_kernel(kernel())).await.expect("an answer");
    // Nothing was sent twice.
    assert_eq!(again.noted(), ["destroy"]);
    server.stop().await;
}

/// A ROUTER of the test's own.
async fn router() -> (TcpListener, ZmqAgent) {
    let listener = TcpListener::bind(loopback()).await.expect("a port");
    let client = ZmqAgent::connect(
        endpoint(listener.local_addr().expect("an address")),
        agent_options(),
    );
    (listener, client)
}

async fn accept(listener: &TcpListener) -> Raw {
    let (stream, peer) = soon(listener.accept()).await.expect("a connection");
    let connection = Connection::establish(stream, peer, SocketType::Router, LIMITS).await;
    Raw(connection.expect("a handshake"))
}

/// A reply to the request.
fn reply(request: &[Bytes], body: &Value) -> (Vec<u8>, Vec<u8>) {
    let mut header = request[0].to_vec();
    header.push(0);
    (header, msgpack::encode(body))
}

#[tokio::test]
async fn a_silent_peer_is_a_timeout_and_its_late_reply_is_dropped() {
    let (listener, client) = router().await;
    let mut agent = accept(&listener).await;
    while !client.is_connected() {
        tokio::task::yield_now().await;
    }
    let client = Arc::new(client);
    let lost = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.ping().await })
    };
    let request = agent.recv().await.expect("a request");
    tokio::time::pause();
    assert_eq!(lost.await.expect("no panic"), Err(AgentError::Timeout));
    tokio::time::resume();

    let (header, _) = reply(&request, &Value::Nil);
    agent
        .send(&[&header, &msgpack::encode(&Value::from("late"))])
        .await;
    let answered = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.ping().await })
    };
    let request = agent.recv().await.expect("a request");
    let (header, body) = reply(&request, &Value::from("bai"));
    agent.send(&[&header, &body]).await;
    assert_eq!(soon(answered).await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_not_sent_later() {
    let reserved = TcpListener::bind(loopback()).await.expect("a port");
    let address = reserved.local_addr().expect("an address");
    drop(reserved);
    let client = ZmqAgent::connect(endpoint(address), agent_options());
    tokio::time::pause();
    let error = client.destroy_kernel(kernel()).await.expect_err("no agent");
    assert!(is_connection_error(&error), "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    tokio::time::resume();
    let stub = Arc::new(Stub::default());
    let server = Serving::at(address, stub.clone(), server_options()).await;
    soon(client.ping()).await.expect("an answer");
    assert_eq!(stub.noted(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test]
async fn unusable_replies_fail_their_call_or_nothing() {
    let (listener, client) = router().await;
    let client = Arc::new(client);
    let mut agent = accept(&listener).await;
    let call = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.destroy_kernel(kernel()).await })
    };
    let request = agent.recv().await.expect("a request");
    let (header, body) = reply(&request, &Value::from("bai"));
    // Too few and too many frames, a short header, a flag that is none, an unknown number.
    agent.send(&[&header]).await;
    agent.send(&[&header, &body, b""]).await;
    agent.send(&[&header[..16], &body]).await;
    let flagged = [&header[..16], &[2]].concat();
    agent.send(&[&flagged, &body]).await;
    let other = [&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..], &header[8..]].concat();
    agent.send(&[&other, &body]).await;
    // At last the answer, with what Python would evaluate in it.
    agent.send(&[&header, b"\x91\xd4\x7f\x00"]).await;
    let error = soon(call)
        .await
        .expect("no panic")
        .expect_err("an unusable answer");
    assert!(error.to_string().contains("extension type 127"), "{error}");
}

#[tokio::test]
async fn pings_are_answered_by_clients_and_servers() {
    const PING: &[u8] = b"\x04\x09\x04PING\x00\x0aab";
    let server = Serving::start(Arc::new(Stub::default()), server_options()).await;
    let mut stream = shaken(server.address).await;
    stream.write_all(PING).await.expect("an open connection");
    assert_eq!(soon(first_command(&mut stream, 0)).await, b"\x04PONGab");

    let (listener, _client) = router().await;
    let (mut stream, _) = soon(listener.accept()).await.expect("a connection");
    stream.write_all(&greeting()).await.expect("an open connection");
    stream
        .write_all(&encode_ready(SocketType::Router))
        .await
        .expect("an open connection");
    stream.write_all(PING).await.expect("an open connection");
    let handshake = 64 + encode_ready(SocketType::Dealer).len();
    assert_eq!(soon(first_command(&mut stream, handshake)).await, b"\x04PONGab");
}

/// The body of the first command after so many bytes.
async fn first_command(stream: &mut TcpStream, skip: usize) -> Vec<u8> {
    let mut skipped = vec![0; skip];
    stream.read_exact(&mut skipped).await.expect("a handshake");
    let mut start = [0; 2];
    stream.read_exact(&mut start).await.expect("a command");
    assert_eq!(start[0], 4);
    let mut body = vec![0; usize::from(start[1])];
    stream.read_exact(&mut body).await.expect("a command");
    body
}

#[tokio::test]
async fn a_stopped_server_answers_nothing_more() {
    let stub = Arc::new(Stub::default());
    let server = Serving::start(stub.clone(), server_options()).await;
    let mut peer = server.dealer().await;
    let args = msgpack::encode(&Value::Array(
        bai_proto::rpc::Call::Execute {
            api_version: 3,
            kernel: kernel(),
            request: query("hang"),
        }
        .args(),
    ));
    peer.send(&[&header(1), b"execute", &args, &[0x80]]).await;
    stub.calls_come_to(1).await;
    server.stop().await;
    assert_eq!(peer.recv().await, None);
}

#[tokio::test]
async fn large_messages_arrive_whole() {
    let stub = Arc::new(Stub::default());
    let server = Serving::start(stub.clone(), server_options()).await;
    let client = server.client();
    let data = Bytes::from(vec![7; 3 << 20]);
    soon(client.upload_file(kernel(), "big".into(), data.clone()))
        .await
        .expect("an answer");
    assert_eq!(stub.noted(), [format!("upload big {}", hex::encode(data))]);
}

#[test]
fn a_decoder_keeps_nothing_of_what_is_only_announced() {
    let mut buffer = BytesMut::from(&[&[3][..], &(60_u64 << 20).to_be_bytes(), b"abc"].concat()[..]);
    let mut decoder = Decoder::new(LIMITS);
    assert_eq!(
        decoder.decode(&mut buffer).expect("within the limits"),
        None::<Incoming>
    );
    assert!(buffer.capacity() < 1 << 10);
}
