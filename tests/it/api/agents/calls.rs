//! Calls of an agent on another host through the API (`agent-protocol.md` 2), and their failures (1.7).

use bai_model::AgentStatus;
use bai_proto::agent::AgentError;
use bai_testkit::{Api, Request, Role};
use serde_json::{Value, json};

use super::super::{assert_clean, create, until_called};
use super::{lose, soon, until_agent, with_agent};

async fn execute(api: &Api, mode: &str, code: &str, run: Value) -> Value {
    let body = json!({ "runId": run, "mode": mode, "code": code });
    let answer = api.call(Role::User, "POST", "/kernel/remote", &body).await;
    if answer.status == 200 {
        answer.json()["result"].clone()
    } else {
        answer.view()
    }
}

#[tokio::test]
async fn a_session_runs_from_creation_to_its_end() {
    let (api, agent) = with_agent().await;
    let created = create(&api, Role::User, "remote").await;
    assert_eq!(
        (&created[0], &created[1]["created"]),
        (&json!(201), &json!(true)),
        "{created}"
    );
    let row = api
        .store
        .reader()
        .kernel(api.agent.kernels()[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.agent, row.agent_addr),
        (Some(agent.info.id.clone()), agent.info.addr.clone())
    );
    assert_eq!(row.container_id.as_deref(), Some("fake"));
    let restarted = api
        .send(Request::new(Role::User, "PATCH", "/kernel/remote"))
        .await;
    assert_eq!(restarted.status, 204);
    let ended = api
        .send(Request::new(Role::User, "DELETE", "/kernel/remote"))
        .await;
    assert_eq!(
        (ended.status, &ended.json()["stats"]["version"]),
        (200, &json!(2))
    );
    assert_eq!(api.agent.kernels(), []);
    assert_clean(&api).await;
}

#[tokio::test]
async fn code_runs_in_every_mode() {
    let (api, _agent) = with_agent().await;
    create(&api, Role::User, "remote").await;
    let ran = execute(&api, "query", "print käse 🧀", Value::Null).await;
    assert_eq!(ran["console"], json!([["stdout", "käse 🧀\n"]]));
    assert_eq!(
        (&ran["status"], &ran["exitCode"]),
        (&json!("finished"), &json!(0))
    );
    let kinds = execute(&api, "query", "kinds", Value::Null).await;
    assert_eq!(
        kinds["console"],
        json!([
            ["stdout", "out"],
            ["stderr", "err"],
            ["media", ["image/png", "data:"]],
            ["html", "<b>"],
            ["log", "log"],
            ["stdout", "more"]
        ])
    );
    let asks = execute(&api, "query", "input", json!("run-1")).await;
    assert_eq!(
        (&asks["status"], &asks["runId"], &asks["options"]),
        (
            &json!("waiting-input"),
            &json!("run-1"),
            &json!({ "is_password": false })
        )
    );
    let got = execute(&api, "input", "cheese", json!("run-1")).await;
    assert_eq!(got["console"], json!([["stdout", "got cheese\n"]]));
    let cleaned = execute(&api, "batch", "", json!("run-2")).await;
    assert_eq!(cleaned["status"], "clean-finished");
    assert_eq!(
        execute(&api, "continue", "", json!("run-2")).await["status"],
        "finished"
    );
}

#[tokio::test]
async fn a_kernel_that_goes_away_under_a_run_is_exit_code_130() {
    let (api, _agent) = with_agent().await;
    create(&api, Role::User, "remote").await;
    let (ran, ended) = tokio::join!(execute(&api, "query", "wait", json!("waits")), async {
        until_called(&api, "execute").await;
        api.send(Request::new(Role::User, "DELETE", "/kernel/remote"))
            .await
            .status
    });
    assert_eq!(ended, 200);
    assert_eq!(
        (&ran["exitCode"], &ran["status"], &ran["runId"]),
        (&json!(130), &json!("finished"), &json!("waits"))
    );
}

#[tokio::test]
async fn failures_of_agents_are_told_as_the_original_tells_them() {
    let (api, _agent) = with_agent().await;
    create(&api, Role::User, "remote").await;
    let failed = execute(&api, "query", "fail badly", Value::Null).await;
    assert_eq!(failed[0], 500);
    assert_eq!(
        failed[1]["type"],
        "https://api.backend.ai/probs/kernel-execution-failed"
    );
    assert_eq!(
        failed[1]["agent-details"],
        json!({
            "type": "https://api.backend.ai/probs/agent-failure",
            "title": "Agent-side exception occurred.",
            "exception": "RuntimeError('badly')",
        })
    );
    let broken = execute(&api, "query", "panic now", Value::Null).await;
    assert_eq!(broken[0], 500, "{broken}");
    let files = json!({ "files": ["nope"] });
    let missing = api
        .call(Role::User, "GET", "/kernel/remote/download", &files)
        .await;
    let exception = missing.json()["agent-details"]["exception"].to_string();
    assert!(
        exception.contains("FileNotFoundError('Could not found the file"),
        "{exception}"
    );
    api.agent.forget(api.agent.kernels()[0]);
    let logs = api.get(Role::User, "/kernel/remote/logs").await;
    assert_eq!(logs.status, 500);
    let exception = logs.json()["agent-details"]["exception"].to_string();
    assert!(exception.contains("KeyError("), "{exception}");
}

#[tokio::test]
async fn files_logs_interrupts_and_completions_reach_the_agent() {
    let (api, _agent) = with_agent().await;
    create(&api, Role::User, "remote").await;
    let mut upload = Request::new(Role::User, "POST", "/kernel/remote/upload");
    upload.content_type = Some("multipart/form-data; boundary=b".to_owned());
    upload.body =
        b"--b\r\nContent-Disposition: form-data; name=\"src\"; filename=\"a.txt\"\r\n\r\nhello\r\n--b--\r\n"
            .to_vec();
    assert_eq!(api.send(upload).await.status, 204);
    let path = json!({ "path": "." });
    let list = api.call(Role::User, "GET", "/kernel/remote/files", &path).await;
    assert_eq!(list.json()["files"], json!([{ "filename": "a.txt" }]).to_string());
    let logs = api.get(Role::User, "/kernel/remote/logs").await;
    assert_eq!(logs.json()["result"]["logs"], "the log\n");
    let interrupted = api
        .send(Request::new(Role::User, "POST", "/kernel/remote/interrupt"))
        .await;
    assert_eq!(interrupted.status, 204);
    let complete = json!({ "code": "pri", "options": { "row": 1, "col": 3 } });
    let completed = api
        .call(Role::User, "POST", "/kernel/remote/complete", &complete)
        .await;
    assert_eq!(
        completed.json()["result"]["completions"],
        json!(["pri_completed"]),
        "{:?}",
        completed.view()
    );
}

#[tokio::test]
async fn an_original_agent_is_spared_what_it_does_not_bear() {
    let (api, _agent) = with_agent().await;
    api.agent.be_original();
    create(&api, Role::User, "remote").await;
    let complete = json!({ "code": "pri", "options": {} });
    let completed = api
        .call(Role::User, "POST", "/kernel/remote/complete", &complete)
        .await;
    assert_eq!(
        (completed.status, &completed.json()["result"]["completions"]),
        (200, &json!([]))
    );
    let path = json!({ "path": "'+x" });
    let refused = api.call(Role::User, "GET", "/kernel/remote/files", &path).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.json()["title"].to_string().contains("19.06"),
        "{:?}",
        refused.view()
    );
    let calls = api.agent.calls();
    assert!(
        !calls
            .iter()
            .any(|call| call == "get_completions" || call == "list_files"),
        "{calls:?}"
    );
}

#[tokio::test]
async fn calls_that_wait_fail_when_their_agent_is_lost() {
    let (api, agent) = with_agent().await;
    create(&api, Role::User, "remote").await;
    let (ran, ()) = tokio::join!(execute(&api, "query", "wait", Value::Null), async {
        until_called(&api, "execute").await;
        lose(&api, &agent.info.id).await;
    });
    assert_eq!(ran[0], 500);
    let exception = ran[1]["agent-details"]["exception"].to_string();
    assert!(exception.contains("the agent is lost"), "{exception}");
    assert_eq!(api.get(Role::User, "/kernel/remote").await.status, 404);
    agent.beat().await;
    until_agent(&api, "i-remote", AgentStatus::Alive).await;
    let ran = execute(&api, "query", "print back", Value::Null).await;
    assert_eq!(ran["console"], json!([["stdout", "back\n"]]));
}

#[tokio::test]
async fn a_creation_that_fails_and_cannot_be_undone_is_undone_later() {
    let (api, mut agent) = with_agent().await;
    api.agent
        .fail_next_creation(AgentError::exception("DockerError", "no space"));
    api.agent
        .fail_next_destruction(AgentError::exception("DockerError", "busy"));
    let failed = create(&api, Role::User, "fails").await;
    assert_eq!(
        (&failed[0], &failed[1]["agent-details"]["exception"]),
        (&json!(500), &json!("DockerError('no space')"))
    );
    // Whatever is new has the records looked at.
    agent.info.version.push('x');
    agent.beat().await;
    soon("the destruction is tried again", || async {
        api.store.reader().count_live_sessions_total().await.unwrap() == 0
    })
    .await;
    let destructions = api
        .agent
        .calls()
        .iter()
        .filter(|call| *call == "destroy_kernel")
        .count();
    assert_eq!(destructions, 2);
    assert_clean(&api).await;
}

#[tokio::test]
async fn force_kill_resets_agents_too() {
    let (api, _agent) = with_agent().await;
    create(&api, Role::User, "ends").await;
    let set = json!({ "status": "frozen", "force_kill": true });
    assert_eq!(
        api.call(Role::Superadmin, "PUT", "/manager/status", &set)
            .await
            .status,
        204
    );
    assert!(api.agent.calls().iter().any(|call| call == "reset_agent"));
    assert_clean(&api).await;
}
