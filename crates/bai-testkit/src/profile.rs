//! What tests stand on: the embedded profile, or real servers when `BAI_TEST_PROFILE` is `cluster`.
//!
//! Invariant: tests that run side by side see nothing of each other. Each has a database and a namespace of its own in
//! servers that the test program shares, and a Redis server of its own, because there the names of keys are the original's.

use std::env;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bai_backplane::broker::{self, Broker};
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_model::time::Clock;
use bai_store::{Store, StoreOptions};
use tokio::sync::OnceCell;

use crate::services::postgres::Database;
use crate::services::{Etcd, Missing, Postgres, Redis};

/// The variable that chooses.
const VARIABLE: &str = "BAI_TEST_PROFILE";

/// What a server under test stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Files or memory; the default.
    Embedded,
    /// PostgreSQL, etcd and Redis.
    Cluster,
}

impl Profile {
    /// As `BAI_TEST_PROFILE` says: `embedded` or `cluster`.
    ///
    /// # Panics
    /// When it says something else.
    pub fn chosen() -> Self {
        match env::var(VARIABLE).as_deref() {
            Err(_) | Ok("" | "embedded") => Self::Embedded,
            Ok("cluster") => Self::Cluster,
            Ok(other) => panic!("{VARIABLE} must be embedded or cluster, not {other}"),
        }
    }
}

/// The services of one test on the cluster profile, which nobody else uses. What it wrote goes with it.
#[derive(Debug)]
pub struct Servers {
    pub database: Database<'static>,
    pub etcd: &'static Etcd,
    /// Of its keys in etcd.
    pub namespace: String,
    pub redis: Redis,
}

impl Servers {
    /// New and empty ones.
    ///
    /// # Panics
    /// When one is not installed: whoever chose the profile should have looked.
    pub fn start() -> Self {
        there(Self::try_start(None))
    }

    /// The same with the schema in the database, copied from one that is made once: making it takes seconds.
    async fn with_schema() -> Self {
        static TEMPLATE: OnceCell<Database<'static>> = OnceCell::const_new();
        let template = TEMPLATE.get_or_init(async || {
            let database = there(Postgres::shared()).database(None);
            open(&database.uri()).await.close().await;
            database
        });
        there(Self::try_start(Some(template.await.name())))
    }

    fn try_start(template: Option<&str>) -> Result<Self, Missing> {
        static ETCD: OnceLock<Result<Etcd, Missing>> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Ok(Self {
            database: Postgres::shared()?.database(template),
            etcd: ETCD.get_or_init(Etcd::start).as_ref().map_err(Clone::clone)?,
            namespace: format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            redis: Redis::start()?,
        })
    }
}

fn there<T>(started: Result<T, Missing>) -> T {
    started.unwrap_or_else(|missing| panic!("{VARIABLE}=cluster cannot be tested here: {missing}"))
}

/// Opens a database, with the patience that a machine needs on which everything is tested at once.
async fn open(uri: &str) -> Store {
    let options = StoreOptions {
        connect_deadline: Duration::from_secs(30),
        ..StoreOptions::default()
    };
    Store::open_with(uri, &options).await.expect("a database")
}

/// A database, a configuration store and a broker.
#[derive(Debug)]
pub(crate) struct Ground {
    pub store: Store,
    pub config: Config,
    pub broker: Arc<dyn Broker>,
    servers: Option<Servers>,
}

impl Ground {
    /// New and empty.
    ///
    /// # Panics
    /// As [`Profile::chosen`] and [`Servers::start`].
    pub async fn open(clock: Arc<dyn Clock>) -> Self {
        match Profile::chosen() {
            Profile::Embedded => {
                Self::connect("sqlite::memory:", "memory:", "memory:", "test", clock, None).await
            }
            Profile::Cluster => {
                let servers = Servers::with_schema().await;
                let (database, etcd, redis) = (
                    servers.database.uri(),
                    format!("etcd://{}", servers.etcd.address()),
                    format!("redis://{}", servers.redis.address()),
                );
                let namespace = servers.namespace.clone();
                Self::connect(&database, &etcd, &redis, &namespace, clock, Some(servers)).await
            }
        }
    }

    async fn connect(
        database: &str,
        config: &str,
        broker: &str,
        namespace: &str,
        clock: Arc<dyn Clock>,
        servers: Option<Servers>,
    ) -> Self {
        let kv = kv::open(config, clock.clone());
        Self {
            store: open(database).await,
            config: Config::new(kv.await.expect("a configuration store"), namespace),
            broker: broker::open(broker, clock).await.expect("a broker"),
            servers,
        }
    }

    /// Whether somebody waits for a lock of the database.
    pub async fn is_waiting_for_a_lock(&self) -> bool {
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND datname = current_database()";
        self.psql(waiting).await.is_none_or(|answer| answer == "t")
    }

    /// What PostgreSQL says to a statement, where there is one.
    pub async fn psql(&self, statement: &str) -> Option<String> {
        let name = self.servers.as_ref()?.database.name().to_owned();
        let statement = statement.to_owned();
        // Aside, because whoever is to wait for it needs this thread.
        let asked = tokio::task::spawn_blocking(move || {
            let server = Postgres::shared().expect("it runs already");
            server.psql(&name, &statement).expect("an answer")
        });
        Some(asked.await.expect("an answer"))
    }
}
