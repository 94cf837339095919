//! Agents on other hosts, called and heard over ZeroMQ, as far as a manager sees them. The manager's side of
//! `agent-protocol.md` section 9 is here: items 1 (`registration`), 2, 3, 5 and 7 (`calls`), 4, 6 and 8 (`ends`).

mod calls;
mod ends;
mod placement;
mod registration;

use std::time::Duration;

use bai_model::{AgentId, AgentStatus};
use bai_proto::event::ReceiverOptions;
use bai_testkit::{Api, RemoteAgent, cast};

/// A manager with one agent on another host that is alive.
async fn with_agent() -> (Api, RemoteAgent) {
    let api = Api::start_alone(&cast::fixture()).await;
    let agent = add_agent(&api, "i-remote").await;
    (api, agent)
}

/// Another one, which carries out what it is called for by the scripted agent as well.
async fn add_agent(api: &Api, id: &str) -> RemoteAgent {
    let events = api.hear(ReceiverOptions::default()).await;
    let agent = RemoteAgent::start(id, events, api.agent.clone()).await;
    agent.beat().await;
    until_agent(api, id, AgentStatus::Alive).await;
    agent
}

/// Waits until an agent's record is in this state.
async fn until_agent(api: &Api, agent: &str, status: AgentStatus) {
    let id = AgentId::from(agent);
    soon(&format!("{agent} is {status}"), || async {
        let row = api.store.reader().agent(&id).await.unwrap();
        row.is_some_and(|row| row.status == status)
    })
    .await;
}

/// Waits until something is so.
async fn soon<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let reached = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached)
        .await
        .unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

/// Records that an agent is lost, as the manager with the timers does.
async fn lose(api: &Api, agent: &AgentId) {
    let mut tx = api.store.begin().await.unwrap();
    tx.set_agent_status(agent, AgentStatus::Lost, None).await.unwrap();
    tx.commit().await.unwrap();
}
