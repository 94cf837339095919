//! Sessions come and go through three managers while each service is emptied, killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bai_core::{Error, Manager};
use bai_model::KernelStatus;
use bai_testkit::{FakeAgent, Role};

use crate::site::{Proxies, Site, attach, eventually, manager, op, session, wanted};

/// Requests that are answered well between two faults.
const STEP: usize = 12;
const WORKERS: usize = 2;
/// After a refusal.
const RETRY: Duration = Duration::from_millis(50);

/// What a client knows of a session: whether it is there, if the last answer said so.
type Known = Arc<Mutex<BTreeMap<String, Option<bool>>>>;

struct Load {
    known: Known,
    answered: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
}

impl Load {
    /// Creates sessions and ends every other one, until told to end.
    async fn work(self, manager: Arc<Manager>, prefix: String) {
        let note = |name: &str, is_there| {
            self.known.lock().unwrap().insert(name.to_owned(), is_there);
            if is_there.is_some() {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut kept: Option<String> = None;
        let mut number = 0;
        while !self.ends.load(Ordering::Relaxed) {
            number += 1;
            let name = format!("{prefix}-{number}");
            note(&name, None);
            match self.create(&manager, &name).await {
                Some(()) => note(&name, Some(true)),
                None => {
                    // As a client that is told to come again: without it six of them leave a small machine no time to recover.
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            // One session is kept until the next one is there.
            let Some(old) = kept.replace(name) else { continue };
            note(&old, None);
            if self.destroy(&manager, &old).await.is_some() {
                note(&old, Some(false));
            }
        }
    }

    async fn create(&self, manager: &Arc<Manager>, name: &str) -> Option<()> {
        let asked = accept(op(manager).await)?;
        accept(manager.session_create(&asked, wanted(name)).await).map(|_| ())
    }

    async fn destroy(&self, manager: &Arc<Manager>, name: &str) -> Option<()> {
        let asked = accept(op(manager).await)?;
        accept(manager.session_destroy(&asked, &session(name)).await).map(|_| ())
    }
}

/// A service that is away may keep a request from being served, and nothing else may.
fn accept<T>(answer: bai_core::Result<T>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(Error::ServiceUnavailable(_) | Error::InstanceNotAvailable(_)) => None,
        // An etcd that lost everything has no images until the agents are registered again.
        Err(Error::InvalidParameters { message, .. }) if message.contains("Unknown image reference") => None,
        Err(Error::KernelCreationFailed(why)) if why.to_string().contains("no longer in the catalogue") => {
            None
        }
        Err(error) => panic!("not because a service is away: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_services_come_and_go() {
    let Some(site) = Site::start("services that come and go") else {
        return;
    };
    let store = site.populate().await;
    let fake = Arc::new(FakeAgent::default());
    let (known, answered, ends) = (Known::default(), Arc::default(), Arc::default());
    let mut managers = Vec::new();
    let mut workers = Vec::new();
    for number in 0..3 {
        let proxies = Proxies::before(&site);
        let manager = manager(&site, &proxies, 10 + number).await;
        let events = attach(&manager, &fake).await;
        for worker in 0..WORKERS {
            let load = Load {
                known: Arc::clone(&known),
                answered: Arc::clone(&answered),
                ends: Arc::clone(&ends),
            };
            let prefix = format!("load-{number}-{worker}");
            workers.push(tokio::spawn(load.work(Arc::clone(&manager), prefix)));
        }
        managers.push((manager, events, proxies));
    }
    let goes_on = |what: &'static str| {
        let answered = Arc::clone(&answered);
        async move {
            let goal = answered.load(Ordering::Relaxed) + STEP;
            eventually(what, || async {
                (answered.load(Ordering::Relaxed) >= goal).then_some(())
            })
            .await;
        }
    };
    goes_on("sessions come and go").await;
    site.redis.commands(&["FLUSHALL"]);
    goes_on("they do without what Redis knew").await;
    site.redis.kill();
    goes_on("they do without Redis").await;
    site.redis.start_again();
    site.etcd.kill();
    site.etcd.start_again();
    goes_on("they do after a restart of etcd").await;
    site.etcd.kill();
    site.etcd.wipe();
    site.etcd.start_again();
    goes_on("they do after etcd lost everything").await;
    site.postgres.stop();
    site.postgres.start_again().unwrap();
    goes_on("they do after a crash of PostgreSQL").await;
    ends.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }

    let reader = store.reader();
    const BETWEEN: [KernelStatus; 3] = [
        KernelStatus::Preparing,
        KernelStatus::Restarting,
        KernelStatus::Terminating,
    ];
    eventually("everything has settled", || async {
        let settled = reader.kernels_with_status(&BETWEEN).await.ok()?.is_empty();
        settled.then_some(())
    })
    .await;
    let running = reader
        .kernels_with_status(&[KernelStatus::Running])
        .await
        .unwrap();
    let recorded: BTreeSet<_> = running.iter().map(|row| row.id).collect();
    eventually("what runs is what is recorded", || async {
        let runs: BTreeSet<_> = fake.kernels().into_iter().collect();
        (runs == recorded).then_some(())
    })
    .await;
    assert_eq!(reader.check_accounting().await.unwrap(), []);
    let user = Role::User.keypair().unwrap().0.into();
    let known = known.lock().unwrap().clone();
    for (name, is_there) in known {
        let found = reader.live_kernels_by_name(&[(&user, &name)]).await.unwrap();
        if let Some(is_there) = is_there {
            assert_eq!(!found.is_empty(), is_there, "{name} as it was acknowledged");
        }
    }
    let heard = eventually("the agent is heard of again", || async {
        let answer = site.redis.commands(&["SELECT 2", "HEXISTS last_seen i-fake"]);
        (answer[1] == ":1").then_some(answer)
    })
    .await;
    assert_eq!(heard.len(), 2);
    for (manager, ..) in &managers {
        manager.shutdown().await;
    }
}
