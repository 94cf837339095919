//! Sessions as containers of an engine that is restarted beneath them, and a container that stands still.

use std::sync::Arc;

use bai_model::{AgentStatus, KernelStatus};
use bai_testkit::services::{Docker, Missing};
use reqwest::Method;
use serde_json::{Value, json};

use super::{CONVERGENCE, Fleet, Member, PATIENCE, create_of, destroy, until};
use crate::crash::{answer, says};

pub(super) const IMAGE: &str = "index.docker.io/library/shell:1";

/// A site with one agent, which has one image.
async fn start() -> Result<(Fleet, Member, Arc<Docker>), Missing> {
    start_on(Docker::start()?).await
}

pub(super) async fn start_on(engine: Docker) -> Result<(Fleet, Member, Arc<Docker>), Missing> {
    let engine = Arc::new(engine);
    engine.import_shell("shell:1").unwrap();
    let fleet = Fleet::start("127.0.0.1").await?;
    let mut member = fleet.member("i-docker", "127.0.0.1", "runtime = 'docker'\nnetwork = 'none'");
    member.place.engine = Some(engine.host());
    member.engine = Some(Arc::clone(&engine));
    member.start();
    fleet.until_status(&member, AgentStatus::Alive, PATIENCE).await;
    Ok((fleet, member, engine))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_restarts_ends_its_sessions_and_starts_others() {
    let (fleet, member, engine) = match start().await {
        Ok(started) => started,
        Err(missing) => return println!("SKIPPED: an engine restarted under sessions, because {missing}"),
    };
    let client = fleet.client();
    let names = ["first", "second", "third"];
    for name in names {
        create_of(&client, IMAGE, name).await.unwrap();
        assert_eq!(says(&client, name, 1).await.unwrap(), Ok("1\n".to_owned()));
    }
    assert_eq!(member.sandboxes().len(), names.len());
    tokio::task::block_in_place(|| engine.stop());
    let refusal = create_of(&client, IMAGE, "fourth").await.unwrap_err();
    assert!(
        refusal.contains("the container engine was lost")
            || refusal.contains("the container engine does not"),
        "{refusal}"
    );
    tokio::task::block_in_place(|| engine.start_again());
    let have_ended = async || fleet.sessions_of(&member).await.is_empty();
    until("the end of the sessions", CONVERGENCE, have_ended).await;
    fleet.converge(&[&member]).await;
    for name in names {
        let refusal = says(&client, name, 2).await.unwrap().unwrap_err();
        assert!(refusal.starts_with("404 "), "{refusal}");
        create_of(&client, IMAGE, name).await.unwrap();
        assert_eq!(says(&client, name, 3).await.unwrap(), Ok("3\n".to_owned()));
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&member]).await;
    assert_eq!(engine.docker(&["ps", "-aq"]).unwrap(), "");
    member.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_stands_still_keeps_nobody_and_can_be_ended() {
    let (fleet, member, engine) = match start().await {
        Ok(started) => started,
        Err(missing) => return println!("SKIPPED: a container that stands still, because {missing}"),
    };
    let client = fleet.client();
    for name in ["still", "moving"] {
        create_of(&client, IMAGE, name).await.unwrap();
        assert_eq!(says(&client, name, 1).await.unwrap(), Ok("1\n".to_owned()));
    }
    let running = fleet.kernels(&[KernelStatus::Running]).await;
    let still = running
        .iter()
        .find(|row| row.sess_id.as_deref() == Some("still"))
        .unwrap();
    let container = still.container_id.clone().unwrap();
    engine.docker(&["pause", &container]).unwrap();

    // Whoever runs something polls, and is told after a while; whoever waits for an answer is told that none comes
    // (`http-api.md` 4.8.5).
    let ask = async |session: &str, body: Value| {
        let answered = answer(&client, Method::POST, &format!("/kernel/{session}"), Some(&body)).await;
        answered.unwrap().map(|answer| answer["result"].clone())
    };
    let asked = ask(
        "still",
        json!({ "mode": "query", "code": "echo 2", "runId": "paused" }),
    )
    .await;
    assert_eq!(asked.unwrap()["status"], "continued");
    let poll = json!({ "mode": "continue", "code": "", "runId": "paused" });
    // A program that says nothing for longer than that only takes its time.
    let long = ask(
        "moving",
        json!({ "mode": "query", "code": "sleep 600", "runId": "long" }),
    )
    .await;
    assert_eq!(long.unwrap()["status"], "continued");
    let poll_long = json!({ "mode": "continue", "code": "", "runId": "long" });
    let refusal = std::sync::Mutex::new(String::new());
    let is_told = async || {
        assert_eq!(
            ask("moving", poll_long.clone()).await.unwrap()["status"],
            "continued"
        );
        match ask("still", poll.clone()).await {
            Ok(answer) => assert_eq!(answer["status"], "continued"),
            Err(told) => *refusal.lock().unwrap() = told,
        }
        !refusal.lock().unwrap().is_empty()
    };
    until("the end of patience", PATIENCE, is_told).await;
    let refusal = refusal.into_inner().unwrap();
    assert!(
        refusal.starts_with("500 Executing user code in the kernel has failed.: "),
        "{refusal}"
    );
    assert!(
        refusal.contains("the kernel's runner has not answered for"),
        "{refusal}"
    );
    assert_eq!(
        ask("moving", poll_long.clone()).await.unwrap()["status"],
        "continued"
    );
    let interrupted = answer(&client, Method::POST, "/kernel/moving/interrupt", None).await;
    interrupted.unwrap().unwrap();
    let is_over = async || ask("moving", poll_long.clone()).await.unwrap()["status"] == "finished";
    until("the end of the long program", PATIENCE, is_over).await;
    let wanted = json!({ "code": "ec", "options": { "row": 0, "col": 2, "line": "ec", "post": "" } });
    let completed = answer(&client, Method::POST, "/kernel/still/complete", Some(&wanted)).await;
    let refusal = completed.unwrap().unwrap_err();
    assert_eq!(refusal, "500 Executing user code in the kernel has failed.");
    assert_eq!(says(&client, "moving", 3).await.unwrap(), Ok("3\n".to_owned()));
    fleet.converge(&[&member]).await;

    // It goes on where it stood.
    engine.docker(&["unpause", &container]).unwrap();
    let is_printed = async || {
        ask("still", poll.clone())
            .await
            .is_ok_and(|answer| answer["console"] == json!([["stdout", "2\n"]]))
    };
    until("what was run meanwhile", PATIENCE, is_printed).await;
    engine.docker(&["pause", &container]).unwrap();
    destroy(&client, "still").await.unwrap();
    fleet.converge(&[&member]).await;
    destroy(&client, "moving").await.unwrap();
    fleet.converge(&[&member]).await;
    assert_eq!(engine.docker(&["ps", "-aq"]).unwrap(), "");
    member.end().await;
}
