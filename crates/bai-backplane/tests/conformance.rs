//! The conformance suites, stamped for every implementation.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_backplane::broker::Broker;
use bai_backplane::conformance::{ManualClock, Passage, Subject};
use bai_backplane::kv::ConfigKv;
use bai_backplane::{broker, kv};
use bai_testkit::services::{Etcd, Missing, Redis};

/// Services have a clock of their own, which can only be waited for.
struct RealTime;

#[async_trait]
impl Passage for RealTime {
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time + Duration::from_millis(20)).await;
    }
}

/// A case on a service, or the reason why it cannot run here.
#[expect(
    clippy::print_stdout,
    reason = "the reason is part of the report of the tests"
)]
async fn on_service<S, T>(
    started: Result<S, Missing>,
    open: impl AsyncFnOnce(&S) -> Arc<T>,
) -> Option<Subject<T>>
where
    S: Send + Sync + 'static,
    T: ?Sized,
{
    match started {
        Ok(service) => Some(Subject {
            it: open(&service).await,
            time: Arc::new(RealTime),
            keep: Box::new(service),
        }),
        Err(why) => {
            println!("SKIPPED: a case of the conformance suite, because {why}");
            None
        }
    }
}

async fn etcd() -> Option<Subject<dyn ConfigKv>> {
    on_service(Etcd::start(), async |etcd| {
        let uri = format!("etcd://{}", etcd.address());
        kv::open(&uri, Arc::new(ManualClock::new())).await.expect("open")
    })
    .await
}

async fn redis() -> Option<Subject<dyn Broker>> {
    on_service(Redis::start(), async |redis| {
        let uri = format!("redis://{}", redis.address());
        broker::open(&uri, Arc::new(ManualClock::new()))
            .await
            .expect("open")
    })
    .await
}

async fn memory_kv() -> Subject<dyn ConfigKv> {
    let clock = Arc::new(ManualClock::new());
    let it = kv::open("memory:", clock.clone()).await.expect("open");
    Subject {
        it,
        time: clock,
        keep: Box::new(()),
    }
}

async fn embedded_kv() -> Subject<dyn ConfigKv> {
    let clock = Arc::new(ManualClock::new());
    let folder = tempfile::tempdir().expect("a folder");
    let uri = format!("embedded://{}", folder.path().join("config.db").display());
    let it = kv::open(&uri, clock.clone()).await.expect("open");
    Subject {
        it,
        time: clock,
        keep: Box::new(folder),
    }
}

async fn memory_broker() -> Subject<dyn Broker> {
    let clock = Arc::new(ManualClock::new());
    let it = broker::open("memory:", clock.clone()).await.expect("open");
    Subject {
        it,
        time: clock,
        keep: Box::new(()),
    }
}

mod kv_memory {
    bai_backplane::kv_conformance!(super::memory_kv);
}

mod kv_embedded {
    bai_backplane::kv_conformance!(super::embedded_kv);
}

mod broker_memory {
    bai_backplane::broker_conformance!(super::memory_broker);
}

mod kv_etcd {
    bai_backplane::kv_conformance!(super::etcd);
}

mod broker_redis {
    bai_backplane::broker_conformance!(super::redis);
}
