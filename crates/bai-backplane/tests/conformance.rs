//! The conformance suites, stamped for every implementation.

use std::sync::Arc;

use bai_backplane::broker::Broker;
use bai_backplane::conformance::{ManualClock, Subject};
use bai_backplane::kv::ConfigKv;
use bai_backplane::{broker, kv};

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
