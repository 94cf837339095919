//! Measurements of this host and of its kernels (`agent-protocol.md` 3.7), taken regularly, so that the last ones are there
//! when a kernel ends, and published in the broker for whoever asks for live ones.
//!
//! Invariants: a runtime or a broker that does not answer holds up neither the others nor the end of a kernel; what a
//! kernel used last is published before its end is told.

mod devices;
mod kernel;
mod metric;
mod node;
mod scratch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bai_backplane::broker::Broker;
use bai_proto::msgpack;
use futures_util::StreamExt as _;
use serde_json::Value;

pub(crate) use devices::{Latest, Snapshot, Usage};
pub(crate) use kernel::History;
pub(crate) use scratch::FolderSize;

use crate::host::Host;
use crate::kernel::registry::Kernel;
use crate::tasks::blocking;

/// How long the runtime may take to measure.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the broker may take to note a measurement.
const PUBLISHING: Duration = Duration::from_secs(2);
/// How long a measurement can be read.
const LIFETIME: Duration = Duration::from_secs(30);
/// Kernels that are measured at the same time.
const AT_ONCE: usize = 8;

/// Where measurements are published.
#[derive(Debug)]
pub(crate) struct Publisher {
    broker: Option<Arc<dyn Broker>>,
    is_away: AtomicBool,
}

impl Publisher {
    pub fn new(broker: Option<Arc<dyn Broker>>) -> Self {
        Self {
            broker,
            is_away: AtomicBool::new(false),
        }
    }

    async fn publish(&self, key: &str, stats: &Value) {
        let Some(broker) = &self.broker else { return };
        let bytes = msgpack::encode(&msgpack::from_json(stats));
        let set = tokio::time::timeout(PUBLISHING, broker.set(key, bytes.into(), LIFETIME)).await;
        let failure = match set {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        let was_away = self.is_away.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            // Once for each outage.
            Some(reason) if !was_away => {
                tracing::warn!(
                    reason,
                    "measurements cannot be published in the broker; trying again"
                );
            }
            None if was_away => tracing::info!("measurements are published again"),
            _ => {}
        }
    }
}

/// Measures the host and all kernels again and again.
pub(crate) async fn gather_regularly(host: Arc<Host>, period: Duration) {
    let mut history = node::History::default();
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(driver) = host.gpus.clone()
            && let Some(snapshot) = blocking(move || Snapshot::take(&driver)).await
        {
            host.device_use.set(snapshot);
        }
        if host.publisher.broker.is_some() {
            let gpus = host.device_use.get().devices.clone();
            if let Some(sample) = blocking(move || node::measure(gpus)).await {
                let told = history.add(&sample, Instant::now());
                host.publisher.publish(host.id.as_str(), &told).await;
            }
        }
        let measuring = host.registry.all().into_iter().map(|kernel| {
            let host = Arc::clone(&host);
            async move { measure(&host, &kernel, false).await }
        });
        futures_util::stream::iter(measuring)
            .for_each_concurrent(AT_ONCE, |measured| measured)
            .await;
    }
}

/// The last measurements of a kernel: fresh ones if there are any. They are published for the last time.
pub(crate) async fn last_of(host: &Host, kernel: &Kernel) -> Option<Value> {
    measure(host, kernel, true).await;
    let last = kernel.stats()?;
    // Also what was measured earlier, of a kernel that has ended: it shall be there for a while.
    host.publisher.publish(&kernel.id.to_string(), &last).await;
    Some(last)
}

async fn measure(host: &Host, kernel: &Kernel, is_last: bool) {
    let Some(life) = kernel.life() else { return };
    let sample = host.runtime.measure(&life.spec, &life.container_id);
    let Ok(Some(sample)) = tokio::time::timeout(DEADLINE, sample).await else {
        return;
    };
    let mut size = kernel.scratch_size();
    if is_last || !size.is_good(Instant::now()) {
        let work = life.spec.scratch.join("work");
        let measured = tokio::time::timeout(DEADLINE, blocking(move || scratch::measure(&work))).await;
        if let Ok(Some(bytes)) = measured {
            size = FolderSize::new(bytes, Instant::now());
        }
    }
    let devices = host
        .device_use
        .get()
        .of(kernel.id, &life.container_id, &kernel.share());
    let told = kernel.add_measurement(&sample, size, life.spec.memory, &devices, Instant::now());
    host.publisher.publish(&kernel.id.to_string(), &told).await;
}
