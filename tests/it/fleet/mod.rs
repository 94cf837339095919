//! A whole site, of which something happens to one part: `bai gateway` on PostgreSQL, etcd and Redis, with agents that are
//! processes of their own. Whatever happens, within [`CONVERGENCE`] the manager's view is the agents': no session is there
//! twice, nothing runs that is not recorded, and slots are exact ([`Fleet::converge`]).
//!
//! [`killed`]: an agent that dies at work. [`parted`]: one that the network leaves alone. [`containers`]: an engine that is
//! restarted, and a container that stands still. [`full`]: a disk without room.

mod containers;
mod full;
mod killed;
mod network;
mod parted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bai::client::Client;
use bai_model::{AgentId, AgentStatus, KernelStatus, SecretKey};
use bai_proto::agent::AgentRpc as _;
use bai_store::Store;
use bai_store::kernel::KernelRow;
use bai_testkit::services::{Docker, Etcd, Missing, Postgres, Proxy, Redis, postgres, processes_of};
use reqwest::Method;
use serde_json::{Value, json};

use crate::agent::daemon::connect;
use crate::agent::{Place, Running};
use crate::crash::{answer, sandboxes};
use crate::gateway::cluster::run;
use crate::gateway::{Daemon, Place as ManagerPlace};

/// How long the view of the manager may differ from the agents' after a fault is over: what came to an agent late is found
/// when it is next asked what it runs, which is once a minute.
const CONVERGENCE: Duration = Duration::from_secs(120);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the loss of an agent may take to show. `manager.heartbeat-timeout` is 5 seconds, and looks and what they look at
/// add up to 2.5; the rest is for machines that are busy with other tests.
const LOSS: Duration = Duration::from_secs(30);

/// Waits for a condition.
async fn until(what: &str, within: Duration, mut is_met: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_met().await {
        assert!(Instant::now() < deadline, "{what} did not come in {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The services and the manager.
struct Fleet {
    manager: Daemon,
    place: ManagerPlace,
    store: Store,
    /// Where agents find etcd.
    etcd: String,
    /// etcd and Redis for agents elsewhere, and behind that all three.
    _proxies: [Proxy; 2],
    _services: (Postgres, Etcd, Redis),
}

impl Fleet {
    /// On an address of this host that all agents can reach.
    async fn start(host: &str) -> Result<Self, Missing> {
        let (postgres, etcd, redis) = (Postgres::start()?, Etcd::start()?, Redis::start()?);
        let proxies = [etcd.address(), redis.address()].map(|service| Proxy::start_on(host, &service));
        let [before_etcd, before_redis] = proxies.each_ref().map(Proxy::address);
        let mut place = ManagerPlace::empty();
        place.event_host = host.to_owned();
        place.write(
            &format!(
                "[etcd]\nnamespace = 'site'\naddr = '{}'\n[db]\naddr = '127.0.0.1:{}'\nname = 'postgres'\n\
                 user = 'postgres'\npassword = '{}'\n",
                etcd.address(),
                postgres.port(),
                postgres::PASSWORD,
            ),
            "",
            &format!("data-dir = '{}'\n", place.path("data").display()),
        );
        run(&place, &["etcd", "put", "config/redis/addr", &before_redis]);
        let manager = place.start(&[]);
        let store = Store::open(&postgres.uri("postgres")).await.unwrap();
        Ok(Self {
            manager,
            place,
            store,
            etcd: before_etcd,
            _proxies: proxies,
            _services: (postgres, etcd, redis),
        })
    }

    /// As the site's ordinary user.
    fn client(&self) -> Client {
        let credentials = std::fs::read(self.place.path("data/credentials.json")).unwrap();
        let credentials: Value = serde_json::from_slice(&credentials).unwrap();
        let text = |name: &str| credentials["user"][name].as_str().unwrap().to_owned();
        let secret_key = SecretKey::new(text("secret_key"));
        Client::new(&self.place.url(""), &text("access_key"), secret_key).unwrap()
    }

    /// An agent that is not started yet; `own` is put into its table `[bai]`.
    fn member(&self, id: &str, host: &str, own: &str) -> Member {
        // Agents of one host must not reach for the same ports.
        static PORTS: AtomicU16 = AtomicU16::new(28_000);
        let first = PORTS.fetch_add(200, Ordering::Relaxed);
        let ports = first..=first + 199;
        let own = format!("cpu-overcommit = 64\n{own}");
        Member {
            id: AgentId(id.to_owned()),
            place: Place::at(host, ports, &self.etcd, "site", id, &own),
            running: None,
            engine: None,
        }
    }

    async fn status(&self, member: &Member) -> Option<AgentStatus> {
        let row = self.store.reader().agent(&member.id).await.unwrap();
        row.map(|row| row.status)
    }

    async fn until_status(&self, member: &Member, status: AgentStatus, within: Duration) {
        let what = format!("{}: {status:?}", member.id.0);
        until(&what, within, async || self.status(member).await == Some(status)).await;
    }

    async fn kernels(&self, statuses: &[KernelStatus]) -> Vec<KernelRow> {
        self.store.reader().kernels_with_status(statuses).await.unwrap()
    }

    /// The running sessions of an agent.
    async fn sessions_of(&self, member: &Member) -> BTreeSet<String> {
        let running = self.kernels(&[KernelStatus::Running]).await;
        let here = running
            .into_iter()
            .filter(|row| row.agent.as_ref() == Some(&member.id));
        here.filter_map(|row| row.sess_id).collect()
    }

    /// Waits until the manager and the agents agree in everything.
    async fn converge(&self, members: &[&Member]) {
        let deadline = Instant::now() + CONVERGENCE;
        loop {
            let differences = self.differences(members).await;
            if differences.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {CONVERGENCE:?}: {differences:#?}\n{}",
                self.manager.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the database says and the agents do not, or the other way round.
    async fn differences(&self, members: &[&Member]) -> Vec<String> {
        let mut found = Vec::new();
        let between: Vec<KernelStatus> = KernelStatus::ALL
            .into_iter()
            .filter(|status| !matches!(status, KernelStatus::Running | KernelStatus::Terminated))
            .collect();
        for row in self.kernels(&between).await {
            found.push(format!("{} is {:?}", row.id, row.status));
        }
        let running = self.kernels(&[KernelStatus::Running]).await;
        let mut times: BTreeMap<_, u32> = BTreeMap::new();
        for row in &running {
            *times.entry(row.sess_id.clone()).or_default() += 1;
        }
        times.retain(|_, times| *times > 1);
        if !times.is_empty() {
            found.push(format!("sessions that are there more than once: {times:?}"));
        }
        for row in self.kernels(&[KernelStatus::Terminated]).await {
            if row.status_info.as_deref().unwrap_or_default().is_empty() {
                found.push(format!("{} has ended without a reason", row.id));
            }
        }
        for discrepancy in self.store.reader().check_accounting().await.unwrap() {
            found.push(format!("{discrepancy:?}"));
        }
        for member in members {
            let recorded: BTreeSet<String> = running
                .iter()
                .filter(|row| row.agent.as_ref() == Some(&member.id))
                .map(|row| row.id.to_string())
                .collect();
            let kernels = match connect(&member.place).list_kernels().await {
                Ok(kernels) => kernels.iter().map(ToString::to_string).collect(),
                Err(error) => {
                    found.push(format!("{} does not answer: {error}", member.id.0));
                    continue;
                }
            };
            for (what, there) in [("agent", kernels), ("host", member.sandboxes())] {
                if recorded != there {
                    let id = &member.id.0;
                    found.push(format!("{id}: recorded {recorded:?}, on the {what} {there:?}"));
                }
            }
        }
        found
    }
}

/// An agent.
struct Member {
    id: AgentId,
    place: Place,
    running: Option<Running>,
    /// Where its sessions are containers.
    engine: Option<Arc<Docker>>,
}

impl Member {
    fn start(&mut self) {
        self.running = Some(self.place.start());
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().pid()
    }

    /// `kill -9`.
    fn kill(&mut self) {
        // Dropping it does that.
        self.running = None;
    }

    /// Kernels that have processes or containers on this host, running or not.
    fn sandboxes(&self) -> BTreeSet<String> {
        let Some(engine) = &self.engine else {
            return sandboxes(&self.place.path(""));
        };
        let kernels = ["ps", "-a", "--format", "{{.Label \"bai.kernel\"}}"];
        let listed = engine.docker(&kernels).unwrap();
        listed.lines().map(str::to_owned).collect()
    }

    /// Ends it with all its sessions, and wants nothing left.
    async fn end(mut self) {
        let mut running = self.running.take().unwrap();
        running.signal("-TERM");
        assert!(running.ended().await.success(), "{}", running.log());
        assert_eq!(processes_of(&self.place.path("")), [""; 0]);
    }
}

/// The words of a refusal, if it is one.
async fn create(client: &Client, session: &str) -> Result<(), String> {
    create_of(client, "shell", session).await
}

async fn create_of(client: &Client, image: &str, session: &str) -> Result<(), String> {
    let wanted = json!({
        "lang": image, "clientSessionToken": session, "config": { "resources": { "cpu": 1, "mem": "64m" } },
    });
    let answered = answer(client, Method::POST, "/kernel/create", Some(&wanted)).await;
    answered.expect("the manager is there").map(drop)
}

async fn destroy(client: &Client, session: &str) -> Result<(), String> {
    let answered = answer(client, Method::DELETE, &format!("/kernel/{session}"), None).await;
    answered.expect("the manager is there").map(drop)
}
