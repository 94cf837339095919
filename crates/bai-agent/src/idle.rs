//! Ends kernels that nobody has used for longer than their limit (`agent-protocol.md` 5.10).

use std::sync::Arc;
use std::time::Duration;

use crate::host::Host;
use crate::kernel::lifecycle;

/// The reason in the event.
const REASON: &str = "idle-timeout";

/// Looks for idle kernels again and again, by the agent's clock.
pub(crate) async fn enforce_regularly(host: Arc<Host>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let now = host.clock.now();
        for kernel in host
            .registry
            .all()
            .into_iter()
            .filter(|kernel| kernel.is_idle(now))
        {
            let ending = Arc::clone(&host);
            let ended = host.tasks.spawn("end idle kernel", async move {
                // It may have been used since.
                let is_idle = ending
                    .registry
                    .get(kernel.id)
                    .is_some_and(|kernel| kernel.is_idle(ending.clock.now()));
                if is_idle && let Err(error) = lifecycle::destroy(&ending, kernel.id, REASON).await {
                    tracing::error!(kernel.id = %kernel.id, %error, "an idle kernel cannot be ended");
                }
            });
            // One after another; a panic is in the log.
            _ = ended.await;
        }
    }
}
