//! `/stream/kernel/{session}/httpproxy`, `/tcpproxy` and `/apps`.

use bai_testkit::service::FLOOD;
use bai_testkit::{Api, Request, Role};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{close_code, message, open, refusal};
use crate::api::{assert_clean, create, eventually};

fn target(app: &str) -> String {
    format!("/stream/kernel/proxied/httpproxy?app={app}")
}

/// A system with one session of one's own services.
async fn start() -> (Api, std::sync::Arc<bai_testkit::service::Services>) {
    let api = Api::start().await;
    let services = api.agent.open_services().await;
    create(&api, Role::User, "proxied").await;
    (api, services)
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let (api, services) = start().await;
    for path in ["httpproxy", "tcpproxy"] {
        let target = format!("/stream/kernel/proxied/{path}?app=echo&port=8080");
        let stream = open(&api, Role::User, &target).await.unwrap();
        let (mut sink, mut stream) = stream.split();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let sending = async {
            sink.send(Message::text("no part of the tunnel")).await.unwrap();
            for chunk in sent.chunks(300_000) {
                sink.send(Message::binary(chunk.to_vec())).await.unwrap();
            }
        };
        let receiving = async {
            let mut received = Vec::new();
            while received.len() < sent.len() {
                match stream.next().await {
                    Some(Ok(Message::Binary(bytes))) => {
                        assert!(bytes.len() <= 8192, "{}", bytes.len());
                        received.extend_from_slice(&bytes);
                    }
                    other => panic!("{other:?}"),
                }
            }
            received
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert!(received == sent, "something was changed on the way");
        let mut stream = sink.reunite(stream).unwrap();
        stream.send(Message::Ping("are you there".into())).await.unwrap();
        assert_eq!(message(&mut stream).await, Message::Pong("are you there".into()));
        assert_eq!(services.connections(), 1);
        stream.close(None).await.unwrap();
        assert_eq!(close_code(&mut stream).await, 1005);
        eventually("the service sees the end", || services.connections() == 0).await;
    }
    let calls = api.agent.calls();
    let count = |name: &str| calls.iter().filter(|call| *call == name).count();
    assert_eq!(count("start_service"), 2);
    let refreshed = count("refresh_idle");
    assert!((1..100).contains(&refreshed), "{refreshed} for some 700 chunks");
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_before_the_upgrade() {
    let (api, _) = start().await;
    let proxied = "/stream/kernel/proxied/tcpproxy";
    let no_app = "No such app service provided by the session.";
    for (role, target, status, title) in [
        (
            Role::User,
            "/stream/kernel/nobody/httpproxy?app=echo",
            404,
            "No such kernel.",
        ),
        (
            Role::Monitor,
            "/stream/kernel/proxied/httpproxy?app=echo",
            404,
            "No such kernel.",
        ),
        // Streams mean the requester's own sessions.
        (
            Role::Superadmin,
            "/stream/kernel/proxied/httpproxy?app=echo&owner_access_key=AKIANABBDUSEREXAMPLE",
            404,
            "No such kernel.",
        ),
        (Role::User, proxied, 404, &format!("{no_app} (proxied:None)")),
        (
            Role::User,
            &format!("{proxied}?app="),
            404,
            &format!("{no_app} (proxied:)"),
        ),
        (
            Role::User,
            &format!("{proxied}?app=n%6Fpe"),
            404,
            &format!("{no_app} (proxied:nope)"),
        ),
        (
            Role::User,
            &format!("{proxied}?app=shell"),
            400,
            "Bad request. (Unsupported service protocol: pty)",
        ),
        (
            Role::User,
            &format!("{proxied}?app=radio"),
            400,
            "Bad request. (Unsupported service protocol: udp)",
        ),
        (
            Role::User,
            &format!("{proxied}?app=broken"),
            500,
            "Internal server error. (Failed to launch the app service: it is broken)",
        ),
        (
            Role::Anonymous,
            &format!("{proxied}?app=echo"),
            400,
            "Missing or invalid authorization parameters. (Date/time sync error)",
        ),
    ] {
        let expected = (status, title.to_owned());
        assert_eq!(refusal(&api, role, target).await, expected, "{role:?} {target}");
    }
    let plain = api.get(Role::User, &format!("{proxied}?app=echo")).await;
    assert_eq!(plain.status, 400, "no websocket");
    assert_clean(&api).await;
}

#[tokio::test]
async fn each_end_has_its_code() {
    let (api, services) = start().await;
    let mut stream = open(&api, Role::User, &target("closed")).await.unwrap();
    assert_eq!(close_code(&mut stream).await, 1011, "refused (Q-45)");

    let mut stream = open(&api, Role::User, &target("greeter")).await.unwrap();
    assert_eq!(message(&mut stream).await, Message::binary(&b"hello"[..]));
    assert_eq!(close_code(&mut stream).await, 1001, "the service has closed");

    let mut stream = open(&api, Role::User, &target("echo")).await.unwrap();
    // The server may have closed before it read everything.
    _ = stream.send(Message::binary(vec![0; 5 << 20])).await;
    assert_eq!(close_code(&mut stream).await, 1009, "too large");
    eventually("the service sees the end", || services.connections() == 0).await;

    let mut stream = open(&api, Role::User, &target("echo")).await.unwrap();
    eventually("connected", || services.connections() == 1).await;
    let destroyed = api.send(Request::new(Role::User, "DELETE", "/kernel/proxied"));
    let (answer, code) = tokio::join!(destroyed, close_code(&mut stream));
    assert_eq!((answer.status, code), (200, 1001), "the session has ended");
    eventually("the service sees the end", || services.connections() == 0).await;
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_restart_ends_no_tunnel_by_itself() {
    let (api, _) = start().await;
    let mut stream = open(&api, Role::User, &target("echo")).await.unwrap();
    let restarted = api
        .send(Request::new(Role::User, "PATCH", "/kernel/proxied"))
        .await;
    assert_eq!(restarted.status, 204);
    stream.send(Message::binary(&b"still here"[..])).await.unwrap();
    assert_eq!(message(&mut stream).await, Message::binary(&b"still here"[..]));
}

#[tokio::test]
async fn a_stop_is_told_and_waited_for() {
    let (api, services) = start().await;
    let address = api.listen().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(
            api.open_stream(address, Role::User, &target("echo"))
                .await
                .unwrap(),
        );
    }
    let told = async {
        for mut stream in streams {
            assert_eq!(close_code(&mut stream).await, 1001);
        }
    };
    tokio::join!(api.stop_serving(), told);
    eventually("the service sees the ends", || services.connections() == 0).await;
}

/// Who does not read makes the service wait, and nobody else.
#[tokio::test]
async fn a_slow_client_makes_its_service_wait() {
    let (api, services) = start().await;
    let mut slow = open(&api, Role::User, &target("flood")).await.unwrap();
    eventually("it has begun", || services.flooded() > 0).await;
    let mut other = open(&api, Role::User, &target("echo")).await.unwrap();
    for _ in 0..100 {
        other.send(Message::binary(&b"meanwhile"[..])).await.unwrap();
        assert_eq!(message(&mut other).await, Message::binary(&b"meanwhile"[..]));
    }
    assert!(services.flooded() < FLOOD, "somebody gathers it all");
    let mut received = 0;
    while received < FLOOD {
        received += message(&mut slow).await.len();
    }
    assert_eq!(received, FLOOD);
    assert_eq!(close_code(&mut slow).await, 1001);
}

/// A service that never reads holds neither its client nor a tunnel for ever.
#[tokio::test]
async fn a_service_that_never_reads_loses_its_tunnel() {
    let (api, _) = start().await;
    let stream = open(&api, Role::User, &target("deaf")).await.unwrap();
    let (mut sink, mut stream) = stream.split();
    // From here on time-outs pass at once when nothing else happens.
    tokio::time::pause();
    let sending = async { while sink.send(Message::binary(vec![0; 1 << 20])).await.is_ok() {} };
    let closed = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Close(Some(close)))) => return close,
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let closed = tokio::time::timeout(10 * bai_gateway::STALL_LIMIT, closed);
    let close = tokio::select! {
        close = closed => close.expect("an end"),
        () = sending => panic!("the tunnel is cut without a word"),
    };
    assert_eq!(
        (u16::from(close.code), close.reason.as_str()),
        (1011, "the service does not read")
    );
}

#[tokio::test]
async fn services_are_listed() {
    let (api, _) = start().await;
    let answer = api.get(Role::User, "/stream/kernel/proxied/apps").await;
    assert_eq!(answer.status, 200);
    let expected = json!({ "name": "echo", "protocol": "http", "ports": [8080] });
    assert_eq!(answer.json()[0], expected);
    assert_eq!(answer.json().as_array().map(Vec::len), Some(8));
    assert_eq!(
        api.get(Role::Monitor, "/stream/kernel/proxied/apps").await.status,
        404
    );
}
