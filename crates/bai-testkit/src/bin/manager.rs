//! A manager without an API, as one of several processes: `manager POSTGRES ETCD REDIS`. It prints its name once it takes
//! part, is known to the database as `bai-<pid>`, and ends in good order at the end of its input.
#![expect(clippy::print_stdout, reason = "the test that starts it reads its name there")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bai_backplane::config::Config;
use bai_backplane::{broker, kv};
use bai_core::{Manager, ManagerOptions};
use bai_store::{Store, StoreOptions};
use bai_testkit::ambient::{SeededRandom, WallClock};
use tokio::io::AsyncReadExt as _;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: manager POSTGRES ETCD REDIS");
    let (postgres, etcd, redis) = (next()?, next()?, next()?);
    let pid = std::process::id();
    let options = StoreOptions {
        application_name: format!("bai-{pid}"),
        ..StoreOptions::default()
    };
    let clock = Arc::new(WallClock);
    let manager = Manager::start(ManagerOptions {
        store: Store::open_with(&postgres, &options).await?,
        config: Config::new(kv::open(&etcd, clock.clone()).await?, "test"),
        registries: bai_registry::Options::default(),
        broker: broker::open(&redis, clock.clone()).await?,
        clock,
        random: Arc::new(SeededRandom::from_seed(pid.into())),
        heartbeat_timeout: Duration::from_secs(1),
        agent_tls: None,
    })
    .await?;
    println!("{}", manager.name().unwrap_or_default());
    let mut input = Vec::new();
    tokio::io::stdin().read_to_end(&mut input).await?;
    manager.shutdown().await;
    Ok(())
}
