//! An agent is killed at work and started again: its sessions are adopted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bai::client::Client;
use bai_model::AgentStatus;
use bai_testkit::services::end_processes_of;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{CONVERGENCE, Fleet, LOSS, PATIENCE, create, destroy, until};
use crate::crash::says;

const WORKERS: u64 = 3;
/// How many sessions a worker leaves, within what a user may have.
const KEPT: usize = 4;

/// What clients of one round know.
#[derive(Clone)]
struct Load {
    stopping: CancellationToken,
    done: Arc<watch::Sender<u64>>,
    /// Acknowledged, and not asked to end.
    kept: Arc<Mutex<BTreeSet<String>>>,
    /// Acknowledged ends.
    ended: Arc<Mutex<BTreeSet<String>>>,
}

impl Load {
    fn new() -> Self {
        Self {
            stopping: CancellationToken::new(),
            done: Arc::new(watch::Sender::new(0)),
            kept: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// Creates, uses and ends sessions until it is told to stop; what an agent that is away refuses is left.
    async fn work(self, client: Client, prefix: String) {
        let mut own = Vec::new();
        for number in 0.. {
            if self.stopping.is_cancelled() {
                break;
            }
            let name = format!("{prefix}-{number}");
            if create(&client, &name).await.is_ok() {
                self.kept.lock().unwrap().insert(name.clone());
                own.push(name.clone());
                _ = says(&client, &name, number).await.expect("the manager is there");
            }
            if own.len() > KEPT {
                let oldest = own.remove(0);
                // Nobody knows until it is acknowledged.
                self.kept.lock().unwrap().remove(&oldest);
                if destroy(&client, &oldest).await.is_ok() {
                    self.ended.lock().unwrap().insert(oldest);
                }
            }
            self.done.send_modify(|done| *done += 1);
        }
    }

    async fn until_done(&self, more: u64) {
        let mut done = self.done.subscribe();
        let enough = *done.borrow() + more;
        let reached = tokio::time::timeout(PATIENCE, done.wait_for(|done| *done >= enough));
        reached.await.expect("work goes on").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_under_load_is_made_up_for() {
    let fleet = match Fleet::start("127.0.0.1").await {
        Ok(fleet) => fleet,
        Err(missing) => return println!("SKIPPED: an agent killed under load, because {missing}"),
    };
    let mut victim = fleet.member("i-victim", "127.0.0.1", "runtime = 'process'");
    let mut other = fleet.member("i-other", "127.0.0.1", "runtime = 'process'");
    for member in [&mut victim, &mut other] {
        member.start();
        fleet.until_status(member, AgentStatus::Alive, PATIENCE).await;
    }
    let client = fleet.client();
    // At once, and after everybody has noticed.
    for is_noticed in [false, true] {
        let load = Load::new();
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let prefix = format!("killed-{is_noticed}-{worker}");
            workers.spawn(load.clone().work(client.clone(), prefix));
        }
        load.until_done(20).await;
        victim.kill();
        if is_noticed {
            fleet.until_status(&victim, AgentStatus::Lost, LOSS).await;
            load.until_done(5).await;
        }
        victim.start();
        load.until_done(10).await;
        load.stopping.cancel();
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        fleet.until_status(&victim, AgentStatus::Alive, PATIENCE).await;
        fleet.converge(&[&victim, &other]).await;
        assert!(
            !fleet.sessions_of(&victim).await.is_empty(),
            "it has something to lose"
        );

        let kept = load.kept.lock().unwrap().clone();
        for (number, name) in (1000..).zip(&kept) {
            let said = says(&client, name, number).await.unwrap();
            assert_eq!(said, Ok(format!("{number}\n")), "{name} was acknowledged");
        }
        let ended = load.ended.lock().unwrap().clone();
        for name in &ended {
            let said = says(&client, name, 0).await.unwrap();
            assert!(said.is_err(), "{name} was ended and says {said:?}");
        }
        let mut left = fleet.sessions_of(&victim).await;
        left.extend(fleet.sessions_of(&other).await);
        assert!(kept.is_subset(&left));
        for name in left {
            destroy(&client, &name).await.unwrap();
        }
        fleet.converge(&[&victim, &other]).await;
        assert!(victim.sandboxes().is_empty() && other.sandboxes().is_empty());
    }
    victim.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_ended_with_their_host_are_reported_ended() {
    let fleet = match Fleet::start("127.0.0.1").await {
        Ok(fleet) => fleet,
        Err(missing) => return println!("SKIPPED: an agent whose host went down, because {missing}"),
    };
    let mut victim = fleet.member("i-victim", "127.0.0.1", "runtime = 'process'");
    victim.start();
    fleet.until_status(&victim, AgentStatus::Alive, PATIENCE).await;
    let client = fleet.client();
    let names = ["first", "second", "third"];
    for name in names {
        create(&client, name).await.unwrap();
    }
    // Nothing of the host lives on but its disk.
    victim.kill();
    end_processes_of(&victim.place.path(""));
    victim.start();
    let have_ended = async || fleet.sessions_of(&victim).await.is_empty();
    until("the end of the sessions", CONVERGENCE, have_ended).await;
    fleet.converge(&[&victim]).await;
    for name in names {
        let refusal = says(&client, name, 1).await.unwrap().unwrap_err();
        assert!(refusal.starts_with("404 "), "{refusal}");
        create(&client, name).await.unwrap();
        assert_eq!(says(&client, name, 2).await.unwrap(), Ok("2\n".to_owned()));
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&victim]).await;
    victim.end().await;
}
