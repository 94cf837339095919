//! `/manager`: the common status, the end of all sessions, announcements.

use bai_model::{AgentId, AgentStatus, KernelStatus};
use bai_proto::agent::AgentError;
use bai_proto::event::AgentEvent;
use bai_testkit::{Answer, Api, FakeAgent, Request, Role};
use serde_json::{Value, json};

use super::{assert_clean, create, until, until_called};

async fn set(api: &Api, body: Value) -> Answer {
    api.call(Role::Superadmin, "PUT", "/manager/status", &body).await
}

async fn kill_all(api: &Api) -> u16 {
    set(api, json!({ "status": "frozen", "force_kill": true }))
        .await
        .status
}

async fn status(api: &Api) -> Value {
    api.get(Role::Anonymous, "/manager/status").await.view()
}

fn shown(status: &str, active_sessions: u32) -> Value {
    json!([200, { "status": status, "active_sessions": active_sessions }])
}

#[tokio::test]
async fn the_status_is_set_and_stays_frozen_through_a_restart() {
    let api = Api::start().await;
    create(&api, Role::User, "first").await;
    assert_eq!(status(&api).await, shown("running", 1));
    let answer = set(&api, json!({ "status": "frozen" })).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(status(&api).await, shown("frozen", 1));
    assert_eq!(create(&api, Role::User, "second").await[0], 503);
    let mut api = api.restart_manager().await;
    api.attach_agent().await;
    assert_eq!(status(&api).await, shown("frozen", 1));
    assert_eq!(create(&api, Role::User, "second").await[0], 503);
    assert_eq!(set(&api, json!({ "status": "running" })).await.status, 204);
    assert_eq!(create(&api, Role::User, "second").await[0], 201);
    assert_clean(&api).await;
}

#[tokio::test]
async fn what_an_original_manager_leaves_behind_becomes_running() {
    let mut api = Api::start().await;
    for left in ["terminated", "preparing", "nonsense"] {
        api.config.put("manager/status", left).await.unwrap();
        api = api.restart_manager().await;
        assert_eq!(status(&api).await, shown("running", 0), "{left}");
    }
}

#[tokio::test]
async fn a_status_that_another_manager_sets_is_known_without_waiting() {
    let api = Api::start().await;
    assert_eq!(status(&api).await, shown("running", 0));
    // The clock stands still: nothing expires, it must be told.
    api.config.put("manager/status", "frozen").await.unwrap();
    let told = async {
        while status(&api).await != shown("frozen", 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), told)
        .await
        .unwrap();
    api.config.delete("manager/status").await.unwrap();
    let told = async {
        while status(&api).await != shown("running", 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), told)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_status_is_refused() {
    let api = Api::start().await;
    for (body, said) in [
        ("", "No request body!"),
        ("{", "No request body!"),
        ("[]", "The body must be a JSON object"),
        ("{}", "status is missing or empty!"),
        (r#"{"status": null}"#, "status is missing or empty!"),
        (r#"{"status": ""}"#, "status is missing or empty!"),
        (r#"{"status": "zzz"}"#, "'zzz' is not a valid ManagerStatus"),
        (r#"{"status": 5}"#, "5 is not a valid ManagerStatus"),
    ] {
        let mut request = Request::new(Role::Superadmin, "PUT", "/manager/status");
        request.body = body.as_bytes().to_vec();
        let answer = api.send(request).await;
        assert_eq!(answer.status, 400, "{body}");
        let title = answer.json()["title"].to_string();
        assert!(title.contains(said), "{body}: {title}");
    }
    assert_eq!(status(&api).await, shown("running", 0));
}

#[tokio::test]
async fn force_kill_ends_all_sessions_of_everybody() {
    let api = Api::start().await;
    for role in Role::SIGNING {
        for name in ["first", "second"] {
            assert_eq!(create(&api, role, name).await[0], 201);
        }
    }
    assert_eq!(kill_all(&api).await, 204);
    assert_eq!(status(&api).await, shown("frozen", 0));
    assert_eq!(api.agent.kernels(), []);
    assert_clean(&api).await;
    assert_eq!(kill_all(&api).await, 204, "nothing to end is fine");
}

#[tokio::test]
async fn force_kill_waits_for_a_session_that_is_being_made_and_ends_it() {
    let api = Api::start().await;
    api.agent.hold_creations(true);
    let (created, killed, ()) = tokio::join!(create(&api, Role::User, "late"), kill_all(&api), async {
        until_called(&api, "create_kernel").await;
        let ending = [KernelStatus::Terminating];
        while api
            .store
            .reader()
            .kernels_with_status(&ending)
            .await
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
        api.agent.hold_creations(false);
    });
    assert_ne!(created[0], 201, "{created}");
    assert_eq!(killed, 204);
    assert_eq!(status(&api).await, shown("frozen", 0));
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_session_that_does_not_end_is_ended_by_the_reconcilers() {
    let api = Api::start().await;
    create(&api, Role::User, "clings").await;
    let kernel = api.agent.kernels()[0];
    api.agent
        .fail_next_destruction(AgentError::exception("RuntimeError", "busy"));
    assert_eq!(kill_all(&api).await, 204);
    let heartbeat = AgentEvent::InstanceHeartbeat(FakeAgent::info());
    api.events.send(heartbeat).await.unwrap();
    until(&api, kernel, KernelStatus::Terminated).await;
    assert_clean(&api).await;
}

#[tokio::test]
async fn force_kill_goes_on_after_a_crash() {
    let api = Api::start().await;
    create(&api, Role::User, "first").await;
    let kernel = api.agent.kernels()[0];
    // The agent is away, so that nothing but the record remains of it.
    let api = api.restart_manager().await;
    assert_eq!(kill_all(&api).await, 204);
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_eq!(row.status, Some(KernelStatus::Terminating));
    let mut api = api.restart_manager().await;
    api.attach_agent().await;
    until(&api, kernel, KernelStatus::Terminated).await;
    assert_eq!(status(&api).await, shown("frozen", 0));
    assert_clean(&api).await;
}

#[tokio::test]
async fn force_kill_frees_what_was_on_lost_agents() {
    let api = Api::start().await;
    create(&api, Role::User, "first").await;
    let api = api.restart_manager().await;
    let mut tx = api.store.begin().await.unwrap();
    tx.set_agent_status(&AgentId("i-fake".to_owned()), AgentStatus::Lost, None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(kill_all(&api).await, 204);
    assert_eq!(status(&api).await, shown("frozen", 0));
    assert_eq!(api.store.reader().check_accounting().await.unwrap(), []);
}

#[tokio::test]
async fn superadmins_announce_and_everybody_reads() {
    let mut api = Api::start().await;
    let read = async |api: &Api| api.get(Role::Anonymous, "/manager/announcement").await.json();
    let nothing = json!({ "enabled": false, "message": "" });
    assert_eq!(read(&api).await, nothing);
    let announce = async |api: &Api, body: Value| {
        api.call(Role::Superadmin, "POST", "/manager/announcement", &body)
            .await
            .status
    };
    assert_eq!(
        announce(&api, json!({ "enabled": true, "message": "Down at noon" })).await,
        204
    );
    api = api.restart_manager().await;
    assert_eq!(
        read(&api).await,
        json!({ "enabled": true, "message": "Down at noon" })
    );
    for wrong in [
        json!({ "enabled": true }),
        json!({ "message": "" }),
        json!({ "message": 1 }),
        json!({ "enabled": "yes", "message": "x" }),
        json!({ "message": "x".repeat(9000) }),
        json!([]),
    ] {
        assert_eq!(announce(&api, wrong.clone()).await, 400, "{wrong}");
    }
    assert_eq!(
        announce(&api, json!({ "enabled": false, "message": null })).await,
        204
    );
    assert_eq!(read(&api).await, nothing);
}
