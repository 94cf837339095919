//! Where the managers of a site take events (`agent-protocol.md` 4.2): found at the start, followed from then on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bai_backplane::config::Config;
use bai_proto::zmtp::Endpoint;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::HostPort;

const PRESENCE: &str = "nodes/manager";
const EVENT_ADDRESS: &str = "nodes/manager/event_addr";
/// How long a change may go unnoticed that the configuration store did not tell.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Before a configuration store that does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits for a manager, however long that takes.
pub async fn find(site: &Config) -> Endpoint {
    let mut was_told = false;
    loop {
        match read(site).await {
            Ok(Some(endpoint)) => return endpoint,
            Ok(None) if was_told => {}
            Ok(None) => {
                tracing::info!("waiting for a manager to register ({PRESENCE} in the configuration store)");
                was_told = true;
            }
            Err(error) => {
                tracing::warn!("cannot look for a manager: {error:#}");
                sleep(PAUSE).await;
            }
        }
        change(site).await;
    }
}

/// Keeps `current` true, until nobody wants to know any more. While no manager is registered the last one's address stands.
pub async fn follow(site: Config, current: watch::Sender<Endpoint>) {
    while !current.is_closed() {
        change(&site).await;
        match read(&site).await {
            Ok(Some(endpoint)) => {
                let is_new = current.send_if_modified(|known| {
                    let is_new = *known != endpoint;
                    known.clone_from(&endpoint);
                    is_new
                });
                if is_new {
                    tracing::info!(manager.endpoint = %endpoint, "events go to another address from now on");
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("cannot look for managers: {error:#}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until something of a manager's registration may have changed.
async fn change(site: &Config) {
    match site.watch(PRESENCE, None).await {
        Ok(mut changes) => _ = timeout(LOOK_AGAIN, changes.next()).await,
        Err(_) => sleep(PAUSE).await,
    }
}

async fn read(site: &Config) -> Result<Option<Endpoint>> {
    if site.get(PRESENCE).await?.is_none() {
        return Ok(None);
    }
    let Some(address) = site.get(EVENT_ADDRESS).await? else {
        return Ok(None);
    };
    let HostPort { host, port } = HostPort::parse(&address).with_context(|| {
        format!(
            "{EVENT_ADDRESS} is {address:?}, and not host:port: correct manager.event-listen-addr of the manager that wrote it"
        )
    })?;
    if host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified()) {
        tracing::warn!(
            "{EVENT_ADDRESS} is {address}, which leads to this host itself: set manager.event-listen-addr of the manager to \
             an address that agents reach"
        );
    }
    Ok(Some(Endpoint { host, port }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bai_backplane::kv;

    use super::*;
    use crate::system::SystemClock;

    #[tokio::test]
    async fn a_manager_is_waited_for_and_followed() {
        let kv = kv::open("memory:", Arc::new(SystemClock)).await.expect("memory");
        let site = Config::new(kv, "local");
        let finding = tokio::spawn({
            let site = site.clone();
            async move { find(&site).await }
        });
        site.put(EVENT_ADDRESS, "[::1]:5002").await.expect("a put");
        site.put(PRESENCE, "i-one").await.expect("a put");
        let found = finding.await.expect("found");
        assert_eq!(found.to_string(), "tcp://[::1]:5002");

        let (current, mut known) = watch::channel(found);
        let following = tokio::spawn(follow(site.clone(), current));
        // What makes no sense changes nothing.
        site.put(EVENT_ADDRESS, "nowhere").await.expect("a put");
        site.put(EVENT_ADDRESS, "10.0.0.2:5002").await.expect("a put");
        known.changed().await.expect("told");
        assert_eq!(known.borrow().to_string(), "tcp://10.0.0.2:5002");
        following.abort();
    }
}
