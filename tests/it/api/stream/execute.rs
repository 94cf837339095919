//! `/stream/kernel/{session}/execute`: websockets over real sockets.

use bai_testkit::{Api, Request, Role};
use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{close_code, next, open};
use crate::api::{assert_clean, create, until_called};

const TARGET: &str = "/stream/kernel/streams/execute";

#[tokio::test]
async fn a_run_is_asked_answered_and_closed() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    stream
        .send(Message::text(
            json!({ "mode": "query", "code": "input", "options": {} }).to_string(),
        ))
        .await
        .unwrap();
    let asked = json!({
        "status": "waiting-input", "console": [["stdout", "name? "]], "exitCode": null,
        "options": { "is_password": false }, "files": [],
    });
    assert_eq!(next(&mut stream).await, asked);
    stream.send(Message::text("me")).await.unwrap();
    let finished = json!({
        "status": "finished", "console": [["stdout", "got me\n"]], "exitCode": 0, "options": null, "files": [],
    });
    assert_eq!(next(&mut stream).await, finished);
    assert_eq!(next(&mut stream).await, json!({ "closed": 1000 }));
    // One stream is one use, however often it asked the agent.
    api.manager.shutdown().await;
    let row = api
        .store
        .reader()
        .kernel(api.agent.kernels()[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.num_queries, Some(1));
}

#[tokio::test]
async fn what_is_wrong_is_said_before_the_upgrade_or_in_a_frame() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    for (role, target, expected) in [
        (Role::Monitor, TARGET, 404),
        // Streams mean the requester's own sessions (Q-57).
        (
            Role::Superadmin,
            "/stream/kernel/streams/execute?owner_access_key=AKIANABBDUSEREXAMPLE",
            404,
        ),
        (Role::Anonymous, TARGET, 400),
    ] {
        match open(&api, role, target).await {
            Err(Error::Http(answer)) => assert_eq!(answer.status().as_u16(), expected, "{role:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(api.get(Role::User, TARGET).await.status, 400, "no websocket");
    let mode = "Invalid API parameters: AssertionError('mode has an invalid value.',)";
    for (frame, text) in [
        (r#"{"mode": "zzz"}"#, mode),
        ("{", "Invalid API parameters: JSONDecodeError("),
    ] {
        let mut stream = open(&api, Role::User, TARGET).await.unwrap();
        stream.send(Message::text(frame)).await.unwrap();
        let said = next(&mut stream).await;
        assert_eq!(said["status"], "error");
        assert!(said["msg"].as_str().unwrap().starts_with(text), "{said}");
        assert_eq!(next(&mut stream).await, json!({ "closed": 1000 }));
    }
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    stream.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(next(&mut stream).await, json!({ "closed": 1000 }));
    assert!(!api.agent.calls().contains(&"execute".to_owned()));
}

#[tokio::test]
async fn a_stream_ends_with_its_session_and_a_run_with_its_client() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    let run = json!({ "mode": "query", "code": "wait" }).to_string();
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    stream.send(Message::text(run.clone())).await.unwrap();
    until_called(&api, "execute").await;
    stream.close(None).await.unwrap();
    until_called(&api, "interrupt_kernel").await;

    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    stream.send(Message::text(run)).await.unwrap();
    while api.agent.calls().iter().filter(|call| *call == "execute").count() < 2 {
        tokio::task::yield_now().await;
    }
    api.send(Request::new(Role::User, "DELETE", "/kernel/streams"))
        .await;
    assert_eq!(next(&mut stream).await["status"], "server-restarting");
    assert_eq!(next(&mut stream).await, json!({ "closed": 1000 }));
    assert_clean(&api).await;
}

#[tokio::test]
async fn what_is_typed_too_early_is_kept() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    let run = json!({ "mode": "query", "code": "input" }).to_string();
    stream.feed(Message::text(run)).await.unwrap();
    stream.send(Message::text("early")).await.unwrap();
    assert_eq!(next(&mut stream).await["status"], "waiting-input");
    let finished = next(&mut stream).await;
    assert_eq!(finished["console"], json!([["stdout", "got early\n"]]));
    assert_eq!(next(&mut stream).await, json!({ "closed": 1000 }));
}

#[tokio::test]
async fn what_is_too_large_is_told_so() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    // The server may have closed before it read everything.
    _ = stream.send(Message::text("x".repeat(5 << 20))).await;
    assert_eq!(close_code(&mut stream).await, 1009);

    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    let run = json!({ "mode": "query", "code": "wait" }).to_string();
    stream.send(Message::text(run)).await.unwrap();
    until_called(&api, "execute").await;
    stream.send(Message::text("x".repeat(65 << 10))).await.unwrap();
    assert_eq!(close_code(&mut stream).await, 1008);
}

#[tokio::test]
async fn a_stop_is_told_and_waited_for() {
    let api = Api::start().await;
    create(&api, Role::User, "streams").await;
    let mut stream = open(&api, Role::User, TARGET).await.unwrap();
    let run = json!({ "mode": "query", "code": "wait" }).to_string();
    stream.send(Message::text(run)).await.unwrap();
    until_called(&api, "execute").await;
    let told = async {
        assert_eq!(next(&mut stream).await["status"], "server-restarting");
        assert_eq!(next(&mut stream).await, json!({ "closed": 1001 }));
        drop(stream);
    };
    tokio::join!(api.stop_serving(), told);
}
