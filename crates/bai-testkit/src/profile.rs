//! What the API stands on in tests: everything in memory, or real servers when `BAI_TEST_PROFILE` is `cluster`.
//!
//! Invariant: tests that run side by side see nothing of each other. Each has a database and a namespace of its own in
//! servers that the test program shares, and a Redis server of its own, because there the names of keys are the original's.

use std::env;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bai_backplane::broker::{self, Broker};
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_model::time::Clock;
use bai_store::Store;

use crate::services::postgres::Database;
use crate::services::{Etcd, Missing, Postgres, Redis};

/// The variable that chooses: `embedded`, which is also the default, or `cluster`.
const PROFILE: &str = "BAI_TEST_PROFILE";

/// A database, a configuration store and a broker.
#[derive(Debug)]
pub(crate) struct Ground {
    pub store: Store,
    pub config: Config,
    pub broker: Arc<dyn Broker>,
    servers: Option<Servers>,
}

/// What goes when the test ends.
#[derive(Debug)]
struct Servers {
    database: Database<'static>,
    redis: Redis,
}

impl Ground {
    /// New and empty.
    ///
    /// # Panics
    /// When the profile is unknown or one of its servers is not installed: whoever chose it should have looked.
    pub async fn open(clock: Arc<dyn Clock>) -> Self {
        match env::var(PROFILE).as_deref() {
            Err(_) | Ok("" | "embedded") => {
                Self::connect("sqlite::memory:", "memory:", "memory:", "test", clock, None).await
            }
            Ok("cluster") => Self::in_cluster(clock).await.unwrap_or_else(|missing| {
                panic!("{PROFILE}=cluster cannot be tested here: {missing}");
            }),
            Ok(other) => panic!("{PROFILE} must be embedded or cluster, not {other}"),
        }
    }

    async fn in_cluster(clock: Arc<dyn Clock>) -> Result<Self, Missing> {
        static ETCD: OnceLock<Result<Etcd, Missing>> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let etcd = ETCD.get_or_init(Etcd::start).as_ref().map_err(Clone::clone)?;
        let servers = Servers {
            database: Postgres::shared()?.database(None),
            redis: Redis::start()?,
        };
        let namespace = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (database, etcd, redis) = (
            servers.database.uri(),
            format!("etcd://{}", etcd.address()),
            format!("redis://{}", servers.redis.address()),
        );
        Ok(Self::connect(&database, &etcd, &redis, &namespace, clock, Some(servers)).await)
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
            store: Store::open(database).await.expect("a database"),
            config: Config::new(kv.await.expect("a configuration store"), namespace),
            broker: broker::open(broker, clock).await.expect("a broker"),
            servers,
        }
    }

    /// Whether somebody waits for a lock of the database.
    pub fn is_waiting_for_a_lock(&self) -> bool {
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND datname = current_database()";
        self.servers
            .as_ref()
            .is_none_or(|servers| servers.database.psql(waiting) == "t")
    }
}
