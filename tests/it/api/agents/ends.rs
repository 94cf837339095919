//! Kernels that end, and agents and managers that come back, with agents of ours and of 19.06.

use bai_model::{AgentStatus, KernelId, KernelStatus};
use bai_proto::event::{AgentEvent, ReceiverOptions};
use bai_testkit::{Api, RemoteAgent, Request, Role};

use super::super::{assert_clean, create, until};
use super::{lose, soon, until_agent, with_agent};

fn end(kernel: KernelId) -> AgentEvent {
    AgentEvent::KernelTerminated {
        kernel,
        reason: "self-terminated".to_owned(),
        generation: None,
        stats: None,
    }
}

async fn status(api: &Api, kernel: KernelId) -> (Option<KernelStatus>, Option<String>) {
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    (row.status, row.status_info)
}

fn asked(api: &Api) -> usize {
    api.agent
        .calls()
        .iter()
        .filter(|call| *call == "get_logs")
        .count()
}

#[tokio::test]
async fn a_kernel_that_ended_is_recorded_with_its_reason_and_statistics() {
    let (api, agent) = with_agent().await;
    create(&api, Role::User, "ends").await;
    let kernel = api.agent.kernels()[0];
    // As an agent of 19.06 leaves it: {"cpu_used": {"current": "1"}}.
    let left = b"\x81\xa8cpu_used\x81\xa7current\xa11";
    let ttl = std::time::Duration::from_secs(30);
    api.broker
        .set(&kernel.to_string(), left.to_vec().into(), ttl)
        .await
        .unwrap();
    api.agent.forget(kernel);
    agent.tell(end(kernel)).await;
    until(&api, kernel, KernelStatus::Terminated).await;
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_eq!(row.status_info.as_deref(), Some("self-terminated"));
    assert_eq!(row.last_stat.unwrap()["cpu_used"]["current"], "1");
    assert_clean(&api).await;
}

#[tokio::test]
async fn the_late_end_of_an_earlier_life_is_not_believed_of_an_original_agent() {
    let (api, agent) = with_agent().await;
    api.agent.be_original();
    create(&api, Role::User, "restarted").await;
    let kernel = api.agent.kernels()[0];
    let restarted = api
        .send(Request::new(Role::User, "PATCH", "/kernel/restarted"))
        .await;
    assert_eq!(restarted.status, 204);
    let before = asked(&api);
    agent.tell(end(kernel)).await;
    // At once, and after the grace.
    soon("it was asked for twice", || async { asked(&api) >= before + 2 }).await;
    assert_eq!(status(&api, kernel).await.0, Some(KernelStatus::Running));
    // The next one is true.
    api.agent.forget(kernel);
    soon("the end is believed", || async {
        agent.tell(end(kernel)).await;
        status(&api, kernel).await.0 == Some(KernelStatus::Terminated)
    })
    .await;
    assert_clean(&api).await;
}

#[tokio::test]
async fn kernels_of_an_agent_that_stops_in_order_end_although_it_answers_no_more() {
    let (api, agent) = with_agent().await;
    api.agent.be_original();
    create(&api, Role::User, "stopped").await;
    let kernel = api.agent.kernels()[0];
    api.agent.forget(kernel);
    // As SIGTERM does it: calls end first, then kernels, then it says that it leaves.
    let id = agent.info.id.clone();
    let tell = [
        end(kernel),
        AgentEvent::InstanceTerminated {
            agent: id,
            reason: "shutdown".to_owned(),
        },
    ];
    for event in tell {
        agent.tell(event).await;
    }
    agent.kill().await;
    until_agent(&api, "i-remote", AgentStatus::Terminated).await;
    until(&api, kernel, KernelStatus::Terminated).await;
    assert_eq!(status(&api, kernel).await.1.as_deref(), Some("self-terminated"));
    assert_clean(&api).await;
}

/// Two sessions, one of which ends without a word while the manager is away.
async fn compared_after_a_restart(is_original: bool) {
    let (api, mut agent) = with_agent().await;
    if is_original {
        api.agent.be_original();
    }
    create(&api, Role::User, "stays").await;
    let stays = api.agent.kernels()[0];
    create(&api, Role::User, "lost").await;
    let lost = api
        .agent
        .kernels()
        .into_iter()
        .find(|kernel| *kernel != stays)
        .unwrap();
    api.agent.forget(lost);
    let api = api.restart_manager().await;
    agent.turn_to(api.hear(ReceiverOptions::default()).await);
    agent.beat().await;
    until(&api, lost, KernelStatus::Terminated).await;
    assert_eq!(status(&api, lost).await.1.as_deref(), Some("lost-on-agent"));
    assert_eq!(status(&api, stays).await.0, Some(KernelStatus::Running));
    assert_clean(&api).await;
}

#[tokio::test]
async fn kernels_that_ended_while_the_manager_was_away_are_found() {
    compared_after_a_restart(false).await;
}

#[tokio::test]
async fn kernels_that_ended_while_the_manager_was_away_are_found_at_an_original_agent() {
    compared_after_a_restart(true).await;
}

#[tokio::test]
async fn an_agent_that_was_restarted_is_compared_with_the_records() {
    let (api, agent) = with_agent().await;
    api.agent.be_original();
    create(&api, Role::User, "died").await;
    let kernel = api.agent.kernels()[0];
    let events = api.hear(ReceiverOptions::default()).await;
    let address = agent.kill().await;
    api.agent.forget(kernel);
    let agent = RemoteAgent::start_at(address, "i-remote", events, api.agent.clone()).await;
    agent.beat().await;
    agent
        .tell(AgentEvent::InstanceStarted {
            agent: agent.info.id.clone(),
        })
        .await;
    until(&api, kernel, KernelStatus::Terminated).await;
    assert_eq!(status(&api, kernel).await.1.as_deref(), Some("lost-on-agent"));
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_session_that_was_given_up_ends_at_its_original_agent_when_that_is_back() {
    let (api, agent) = with_agent().await;
    api.agent.be_original();
    create(&api, Role::User, "lost").await;
    let old = api.agent.kernels()[0];
    lose(&api, &agent.info.id).await;
    assert_eq!(
        create(&api, Role::User, "lost").await[0],
        503,
        "no agent is alive"
    );
    until(&api, old, KernelStatus::Terminated).await;
    soon("the agent is back", || async {
        agent.beat().await;
        !api.agent.kernels().contains(&old)
    })
    .await;
    assert_clean(&api).await;
}
