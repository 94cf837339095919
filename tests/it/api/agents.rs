//! Agents on other hosts, called and heard over ZeroMQ, as far as managers see them.

use bai_model::{AgentId, AgentStatus};
use bai_proto::event::ReceiverOptions;
use bai_testkit::{Api, RemoteAgent, Request, Role, cast};
use serde_json::json;

use super::{assert_clean, create};

/// A manager with one agent on another host that is alive.
async fn with_agent() -> (Api, RemoteAgent) {
    let api = Api::start_alone(&cast::fixture()).await;
    let events = api.hear(ReceiverOptions::default()).await;
    let agent = RemoteAgent::start("i-remote", events, api.agent.clone()).await;
    agent.beat().await;
    until_agent(&api, "i-remote", AgentStatus::Alive).await;
    (api, agent)
}

/// Waits until an agent's record is in this state.
async fn until_agent(api: &Api, agent: &str, status: AgentStatus) {
    let reached = async {
        let id = AgentId::from(agent);
        while api
            .store
            .reader()
            .agent(&id)
            .await
            .unwrap()
            .is_none_or(|row| row.status != status)
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), reached)
        .await
        .unwrap_or_else(|_| panic!("agent {agent} never became {status}"));
}

#[tokio::test]
async fn a_heartbeat_registers_an_agent_and_sessions_run_there() {
    let (api, agent) = with_agent().await;
    let row = api.store.reader().agent(&agent.info.id).await.unwrap().unwrap();
    assert_eq!(
        (row.addr, row.version),
        (agent.info.addr.clone(), agent.info.version.clone())
    );
    assert_eq!(row.available_slots, agent.info.available_slots);
    let created = create(&api, Role::User, "remote").await;
    assert_eq!(
        (&created[0], &created[1]["created"]),
        (&json!(201), &json!(true)),
        "{created}"
    );
    let run = json!({ "runId": null, "mode": "query", "code": "print 42" });
    let answer = api.call(Role::User, "POST", "/kernel/remote", &run).await;
    assert_eq!(answer.json()["result"]["console"], json!([["stdout", "42\n"]]));
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
