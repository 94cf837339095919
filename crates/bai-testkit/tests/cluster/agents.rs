//! An agent on another host tells one manager, and every manager calls it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bai_core::session::{BatchOptions, ExecuteMode, SessionExecute};
use bai_core::{Error, Manager};
use bai_model::{AgentStatus, KernelStatus};
use bai_proto::event::{AgentEvent, EventReceiver, ReceiverOptions};
use bai_store::Store;
use bai_testkit::{FakeAgent, RemoteAgent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::site::{Proxies, Site, eventually, manager_with_timeout, op, session, wanted};

/// The least that a site may set.
const TIMEOUT: Duration = Duration::from_secs(4);

async fn hear(manager: &Arc<Manager>) -> SocketAddr {
    let address = "127.0.0.1:0".parse().unwrap();
    let receiver = EventReceiver::bind(address, ReceiverOptions::default())
        .await
        .unwrap();
    let address = receiver.local_addr().unwrap();
    let (events, received) = mpsc::channel(64);
    manager.hear_agents(received);
    tokio::spawn(receiver.run(events, CancellationToken::new()));
    address
}

fn run(code: &str) -> SessionExecute {
    SessionExecute {
        run_id: None,
        mode: ExecuteMode::Query,
        code: code.to_owned(),
        batch: BatchOptions::default(),
        flush_timeout: None,
    }
}

async fn until_agent(store: &Store, agent: &RemoteAgent, status: AgentStatus) {
    eventually(&format!("the agent is {status}"), || async {
        let row = store.reader().agent(&agent.info.id).await.unwrap();
        row.filter(|row| row.status == status)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_tells_one_manager_is_called_lost_and_found_by_both() {
    let Some(site) = Site::start("agents of several managers") else {
        return;
    };
    let store = site.populate().await;
    let proxies = Proxies::before(&site);
    let first = manager_with_timeout(&site, &proxies, 1, TIMEOUT).await;
    let second = manager_with_timeout(&site, &proxies, 2, TIMEOUT).await;
    let fake = Arc::new(FakeAgent::default());
    let agent = RemoteAgent::start("i-remote", hear(&first).await, fake.clone()).await;
    agent.beat().await;
    until_agent(&store, &agent, AgentStatus::Alive).await;

    let user = op(&second).await.unwrap();
    // The other manager is told of its images a moment after.
    let created = eventually("a session", || async {
        match second.session_create(&user, wanted("shared")).await {
            Err(Error::InstanceNotAvailable(_)) => None,
            created => Some(created.unwrap()),
        }
    });
    assert!(created.await.created);
    second.session_restart(&user, &session("shared")).await.unwrap();
    // Late, and told to the manager that did not restart it.
    let kernel = fake.kernels()[0];
    let end = AgentEvent::KernelTerminated {
        kernel,
        reason: "self-terminated".to_owned(),
        generation: None,
        stats: None,
    };
    agent.tell(end).await;

    // Silent from now on, while somebody waits for it.
    let waiting = second
        .session_execute(&user, &session("shared"), run("wait"))
        .await;
    let Err(Error::KernelExecutionFailed(error)) = waiting else {
        panic!("{waiting:?}");
    };
    assert!(error.repr().contains("the agent is lost"), "{error}");
    until_agent(&store, &agent, AgentStatus::Lost).await;
    let missing = second
        .session_execute(&user, &session("shared"), run("print x"))
        .await;
    assert!(matches!(missing, Err(Error::KernelNotFound)), "{missing:?}");

    agent.beat().await;
    until_agent(&store, &agent, AgentStatus::Alive).await;
    let ran = second
        .session_execute(&user, &session("shared"), run("print x"))
        .await;
    assert_eq!(ran.unwrap().unwrap().console.len(), 1);
    let row = store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_eq!(row.status, Some(KernelStatus::Running));

    // Whoever is left goes on with it.
    first.shutdown().await;
    second.session_destroy(&user, &session("shared")).await.unwrap();
    assert_eq!(fake.kernels(), []);
    second.shutdown().await;
}

/// What managers wait for an agent's list of kernels is longer.
const WITHOUT_THEIR_ANSWERS: Duration = Duration::from_secs(20);

/// Few agents at a time are looked up in the records, and none of them while it is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_do_not_answer_keep_no_other_from_being_recorded() {
    let Some(site) = Site::start("agents that do not answer") else {
        return;
    };
    let store = site.populate().await;
    let proxies = Proxies::before(&site);
    let manager = manager_with_timeout(&site, &proxies, 1, Duration::from_secs(60)).await;
    let events = hear(&manager).await;
    let (mut silent, mut agents) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let fake = Arc::new(FakeAgent::default());
        fake.hold_lists(true);
        agents.push(RemoteAgent::start(&format!("i-silent-{number}"), events, fake.clone()).await);
        silent.push(fake);
    }
    let all_are_asked = async {
        for agent in &agents {
            agent.beat().await;
            until_agent(&store, agent, AgentStatus::Alive).await;
        }
        eventually("each is asked what it runs", || async {
            silent.iter().all(|fake| fake.keeps_waiting()).then_some(())
        })
        .await;
    };
    tokio::time::timeout(WITHOUT_THEIR_ANSWERS, all_are_asked)
        .await
        .expect("nobody waits for the answers of others");
    for fake in &silent {
        fake.hold_lists(false);
    }
    manager.shutdown().await;
}
