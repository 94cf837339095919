//! What the agent says of itself, at every change and again and again (`agent-protocol.md` 3.3).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::AgentId;
use bai_proto::event::{AgentEvent, AgentImage, AgentInfo, InstalledImage};
use serde_json::{Map, Value, json};

use crate::host::Host;

/// Between two looks at the images.
const IMAGES: Duration = Duration::from_secs(60);
/// What container engines leave out of names.
const HUB: &str = "index.docker.io/";

/// Where an agent is and what it calls itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where its calls are taken.
    pub addr: String,
    pub region: String,
}

impl Identity {
    /// Of an agent that is called in its own process.
    pub fn in_process(id: &AgentId) -> Self {
        Self {
            addr: format!("inproc://{id}"),
            region: "local".to_owned(),
        }
    }
}

/// The images that are offered, as they were when last looked at.
#[derive(Debug, Default)]
pub(crate) struct Offer(Mutex<Vec<AgentImage>>);

impl Offer {
    fn images(&self) -> MutexGuard<'_, Vec<AgentImage>> {
        // Assignments only: nothing is half done after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the images again. What cannot be found out stays as it was.
async fn refresh(host: &Host) {
    if let Some(images) = host.images.list().await {
        *host.offer.images() = images;
    }
}

/// Looks at the images again and again, beside the heartbeats, which an engine that hangs must not hold up.
pub(crate) async fn refresh_regularly(host: Arc<Host>) {
    loop {
        tokio::time::sleep(IMAGES).await;
        refresh(&host).await;
    }
}

/// Sends one heartbeat with what there is now.
pub(crate) async fn send(host: &Host) {
    refresh(host).await;
    host.tell(heartbeat(host)).await;
}

/// Sends one after the other, whatever else goes wrong.
pub(crate) async fn send_regularly(host: Arc<Host>, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once, and the first heartbeat was sent.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        // There will be another.
        host.tell_if_room(heartbeat(&host));
    }
}

fn heartbeat(host: &Host) -> AgentEvent {
    let version = env!("CARGO_PKG_VERSION");
    let images = host.offer.images().clone();
    let installed = images.iter().map(|image| InstalledImage {
        repo_tag: image
            .canonical
            .strip_prefix(HUB)
            .unwrap_or(&image.canonical)
            .to_owned(),
        id: image.digest.clone(),
    });
    let (available_slots, slot_types, compute_plugins) = {
        let ledger = host.ledger();
        (
            ledger.capacity(),
            ledger.slot_types(),
            plugins(host, ledger.capacity().names()),
        )
    };
    AgentEvent::InstanceHeartbeat(AgentInfo {
        id: host.id.clone(),
        region: host.identity.region.clone(),
        addr: host.identity.addr.clone(),
        version: version.to_owned(),
        available_slots,
        slot_types,
        compute_plugins,
        installed: installed.collect(),
        images,
    })
}

/// Kinds of devices with what is told about them.
fn plugins<'a>(host: &Host, slots: impl Iterator<Item = &'a str>) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let mut plugins = Map::new();
    for slot in slots {
        let kind = slot.split('.').next().unwrap_or(slot);
        plugins
            .entry(kind)
            .or_insert_with(|| json!({ "version": version }));
    }
    if let Some(Value::Object(cpu)) = plugins.get_mut("cpu") {
        cpu.insert("agent_version".to_owned(), version.into());
        cpu.insert("machine".to_owned(), std::env::consts::ARCH.into());
        cpu.insert("os_type".to_owned(), "Linux".into());
    }
    if let (Some(Value::Object(cuda)), Some(driver)) = (plugins.get_mut("cuda"), &host.gpus) {
        cuda.insert("nvidia_version".to_owned(), driver.version().into());
    }
    Value::Object(plugins)
}
