//! `/stream/kernel/{session}/pty`: a terminal over ZeroMQ behind a websocket.

use bai_testkit::{Api, Request, Role};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{Stream, close_code, next, open, refusal};
use crate::api::{assert_clean, create, eventually, until_called};

const TARGET: &str = "/stream/kernel/typed/pty";

async fn start() -> Api {
    let api = Api::start().await;
    api.agent.open_services().await;
    create(&api, Role::User, "typed").await;
    api
}

async fn type_in(stream: &mut Stream, keys: &str) {
    let frame = json!({ "type": "stdin", "chars": BASE64.encode(keys) });
    stream.send(Message::text(frame.to_string())).await.unwrap();
}

async fn say(stream: &mut Stream, frame: serde_json::Value) {
    stream.send(Message::text(frame.to_string())).await.unwrap();
}

/// What is printed next.
async fn printed(stream: &mut Stream) -> String {
    let frame = next(stream).await;
    assert_eq!(frame["type"], "out", "{frame}");
    let data = BASE64.decode(frame["data"].as_str().unwrap()).unwrap();
    String::from_utf8(data).unwrap()
}

#[tokio::test]
async fn not_even_the_first_keys_are_lost() {
    let api = start().await;
    for _ in 0..5 {
        let mut stream = open(&api, Role::User, TARGET).await.unwrap();
        for keys in ["a", "b", "echo\n"] {
            type_in(&mut stream, keys).await;
        }
        stream.send(Message::binary(vec![1, 2, 3])).await.unwrap();
        for keys in ["1> a", "1> b", "1> echo\n"] {
            assert_eq!(printed(&mut stream).await, keys);
        }
        stream.close(None).await.unwrap();
        assert_eq!(close_code(&mut stream).await, 1005);
    }
    until_called(&api, "refresh_idle").await;
}

#[tokio::test]
async fn two_who_look_see_the_same() {
    let api = start().await;
    let mut one = open(&api, Role::User, TARGET).await.unwrap();
    let mut other = open(&api, Role::User, TARGET).await.unwrap();
    type_in(&mut one, "x").await;
    assert_eq!(printed(&mut one).await, "1> x");
    type_in(&mut other, "y").await;
    assert_eq!(printed(&mut one).await, "1> y");
    loop {
        if printed(&mut other).await == "1> y" {
            break;
        }
    }
}

#[tokio::test]
async fn sizes_and_pings_are_queries() {
    let api = start().await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    say(&mut stream, json!({ "type": "resize", "rows": 24, "cols": 80 })).await;
    say(&mut stream, json!({ "type": "ping" })).await;
    say(&mut stream, json!({ "type": "set", "key": "x" })).await;
    let expected = ["%resize 24 80", "%ping"];
    eventually("both were run", || api.agent.codes() == expected).await;
    type_in(&mut stream, "on").await;
    assert_eq!(printed(&mut stream).await, "1> on");
    // The opening, three commands.
    api.manager.shutdown().await;
    let kernel = api.agent.kernels()[0];
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_eq!(row.num_queries, Some(4));
}

#[tokio::test]
async fn a_terminal_survives_restarts() {
    let api = start().await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    type_in(&mut stream, "x").await;
    assert_eq!(printed(&mut stream).await, "1> x");
    for _ in 0..3 {
        say(&mut stream, json!({ "type": "restart" })).await;
    }
    until_called(&api, "restart_kernel").await;
    // What is typed until the new terminal listens may be lost with the old one, but not the connection.
    let mut line = String::new();
    while !line.starts_with("2> ") {
        type_in(&mut stream, "y").await;
        line = printed(&mut stream).await;
    }
    // By somebody else.
    let restarted = api.send(Request::new(Role::User, "PATCH", "/kernel/typed")).await;
    assert_eq!(restarted.status, 204);
    while !line.starts_with("3> ") {
        type_in(&mut stream, "z").await;
        line = printed(&mut stream).await;
    }
    let calls = api.agent.calls();
    let restarts = calls.iter().filter(|call| *call == "restart_kernel").count();
    assert_eq!(
        restarts, 2,
        "those that were asked for during the first are one with it"
    );
}

#[tokio::test]
async fn each_end_has_its_code() {
    let api = start().await;
    for frame in [
        "{".to_owned(),
        "[]".to_owned(),
        json!({ "type": "stdin", "chars": "%%%" }).to_string(),
        json!({ "type": "resize", "rows": "24; reboot", "cols": 80 }).to_string(),
    ] {
        let mut stream = open(&api, Role::User, TARGET).await.unwrap();
        stream.send(Message::text(frame.clone())).await.unwrap();
        assert_eq!(close_code(&mut stream).await, 1008, "{frame}");
    }
    assert!(api.agent.codes().is_empty());

    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    type_in(&mut stream, "x").await;
    assert_eq!(printed(&mut stream).await, "1> x");
    let destroyed = api.send(Request::new(Role::User, "DELETE", "/kernel/typed"));
    let (answer, code) = tokio::join!(destroyed, close_code(&mut stream));
    assert_eq!((answer.status, code), (200, 1000), "the session has ended (Q-45)");

    create(&api, Role::User, "typed").await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    let (code, ()) = tokio::join!(close_code(&mut stream), api.stop_serving());
    assert_eq!(code, 1001, "the server stops");
    assert_clean(&api).await;
}

#[tokio::test]
async fn what_has_no_terminal_is_refused() {
    let api = Api::start().await;
    create(&api, Role::User, "typed").await;
    let no_terminal = "No such app service provided by the session. (typed:pty)";
    for (role, target, status, title) in [
        (Role::User, TARGET, 404, no_terminal),
        (Role::User, "/stream/kernel/nobody/pty", 404, "No such kernel."),
        (Role::DomainAdmin, TARGET, 404, "No such kernel."),
    ] {
        assert_eq!(refusal(&api, role, target).await, (status, title.to_owned()));
    }
}
