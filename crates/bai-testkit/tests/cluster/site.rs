//! Servers with proxies before them, and managers on them.

use std::sync::Arc;
use std::time::Duration;

use bai_backplane::config::Config;
use bai_backplane::{broker, kv};
use bai_core::session::{RequestedResources, SessionCreate, SessionRef};
use bai_core::{Actor, Manager, ManagerOptions, Op};
use bai_model::time::Clock as _;
use bai_model::{AccessKey, AgentId};
use bai_store::{Store, StoreOptions, fixture};
use bai_testkit::ambient::{SeededRandom, WallClock};
use bai_testkit::services::{Etcd, Missing, Postgres, Proxy, Redis};
use bai_testkit::{FakeAgent, Role, agent, cast};
use serde_json::{Value, json};

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One of each server, which nobody else uses.
pub struct Site {
    pub postgres: Postgres,
    pub etcd: Etcd,
    pub redis: Redis,
}

impl Site {
    /// Nothing, and a line that says so, when a server is not installed.
    pub fn start(what: &str) -> Option<Self> {
        let started = || -> Result<Self, Missing> {
            Ok(Self {
                postgres: Postgres::start()?,
                etcd: Etcd::start()?,
                redis: Redis::start()?,
            })
        };
        started()
            .map_err(|missing| println!("SKIPPED: {what}, because {missing}"))
            .ok()
    }

    pub fn uris(&self) -> [String; 3] {
        [
            self.postgres.uri("postgres"),
            format!("etcd://{}", self.etcd.address()),
            format!("redis://{}", self.redis.address()),
        ]
    }

    /// The store as nobody's, with a schema.
    pub async fn store(&self) -> Store {
        Store::open(&self.uris()[0]).await.unwrap()
    }

    /// The cast, with room for many sessions.
    pub async fn populate(&self) -> Store {
        let store = self.store().await;
        let mut cast = cast::fixture();
        cast["keypair_resource_policies"][0]["max_concurrent_sessions"] = json!(100);
        let mut tx = store.begin().await.unwrap();
        let hash = |password: &str| Ok::<_, std::convert::Infallible>(password.to_owned());
        fixture::populate(&mut tx, &cast, WallClock.now(), &hash)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        store
    }
}

/// Stands between one manager and its servers.
pub struct Proxies {
    pub postgres: Proxy,
    pub etcd: Proxy,
    pub redis: Proxy,
}

impl Proxies {
    pub fn before(site: &Site) -> Self {
        Self {
            postgres: Proxy::start(&format!("127.0.0.1:{}", site.postgres.port())),
            etcd: Proxy::start(&site.etcd.address()),
            redis: Proxy::start(&site.redis.address()),
        }
    }
}

/// A manager behind proxies, with deadlines of a second or two.
pub async fn manager(site: &Site, proxies: &Proxies, seed: u64) -> Arc<Manager> {
    let direct = format!("127.0.0.1:{}", site.postgres.port());
    let postgres = site.uris()[0].replace(&direct, &proxies.postgres.address());
    let options = StoreOptions {
        setting: "[db] addr".to_owned(),
        connect_deadline: Duration::from_secs(1),
        statement_timeout: Duration::from_secs(2),
        lock_timeout: Duration::from_secs(2),
        ..StoreOptions::default()
    };
    let clock = Arc::new(WallClock);
    let etcd = format!("etcd://{}?timeout=1", proxies.etcd.address());
    let redis = format!("redis://{}?timeout=1", proxies.redis.address());
    Manager::start(ManagerOptions {
        store: Store::open_with(&postgres, &options).await.unwrap(),
        config: Config::new(kv::open(&etcd, clock.clone()).await.unwrap(), "test"),
        registries: bai_registry::Options::default(),
        broker: broker::open(&redis, clock.clone()).await.unwrap(),
        clock,
        random: Arc::new(SeededRandom::from_seed(seed)),
        heartbeat_timeout: Duration::from_secs(30),
        agent_tls: None,
    })
    .await
    .unwrap()
}

/// Puts an agent into a manager's service. The sender keeps it there.
pub async fn attach(
    manager: &Arc<Manager>,
    fake: &Arc<FakeAgent>,
) -> tokio::sync::mpsc::Sender<bai_proto::event::AgentEvent> {
    let (events, incoming) = agent::events();
    manager.attach_agent(AgentId("i-fake".to_owned()), agent::as_rpc(fake), incoming);
    manager.wait_for_agent().await.unwrap();
    events
}

/// An operation of the cast's ordinary user, verified as a request is.
pub async fn op(manager: &Manager) -> bai_core::Result<Op> {
    let key: AccessKey = Role::User.keypair().unwrap().0.into();
    let credential = manager.credential(&key).await?.unwrap();
    Ok(Op {
        request_id: "test".to_owned(),
        now: WallClock.now(),
        actor: Actor::Keypair(credential.identity),
    })
}

pub fn session(name: &str) -> SessionRef {
    SessionRef {
        name: name.to_owned(),
        owner: None,
    }
}

pub fn wanted(name: &str) -> SessionCreate {
    let Value::Object(slots) = json!({ "cpu": "1", "mem": "256m" }) else {
        unreachable!("an object")
    };
    SessionCreate {
        name: name.parse().unwrap(),
        image: "python".to_owned(),
        group: "default".to_owned(),
        domain: "default".to_owned(),
        tag: None,
        owner: None,
        mounts: Vec::new(),
        environ: Default::default(),
        resources: RequestedResources::Slots(slots),
        reuse_if_exists: true,
    }
}

/// Waits until `look` finds something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let found = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap_or_else(|_| panic!("it never came to this: {what}"))
}
