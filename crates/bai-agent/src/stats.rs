//! Measurements of kernels (`data-model.md` 19.1): taken regularly, so that the last ones are there when a kernel ends.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::host::Host;
use crate::kernel::registry::Kernel;

/// How long the runtime may take to measure.
const DEADLINE: Duration = Duration::from_secs(2);

/// Measures all kernels again and again.
pub(crate) async fn gather_regularly(host: Arc<Host>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        for kernel in host.registry.all() {
            measure(&host, &kernel).await;
        }
    }
}

/// The last measurements of a kernel: fresh ones if there are any.
pub(crate) async fn last_of(host: &Host, kernel: &Kernel) -> Option<Value> {
    measure(host, kernel).await;
    kernel.stats()
}

async fn measure(host: &Host, kernel: &Kernel) {
    let Some(life) = kernel.life() else { return };
    let stats = host.runtime.stats(&life.spec, &life.container_id);
    if let Ok(Some(stats)) = tokio::time::timeout(DEADLINE, stats).await {
        kernel.set_stats(stats);
    }
}
