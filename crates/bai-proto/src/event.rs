//! What an agent tells its manager unasked (`agent-protocol.md` 3.2, 3.3).
//!
//! With the feature `zmq` also how it goes from host to host: `wire` (as frames), `sender` (PUSH) and `receiver` (PULL).

use std::collections::BTreeMap;

use bai_model::{AgentId, KernelId, ResourceSlot, SlotTypes};
use serde::{Deserialize, Serialize};

use crate::agent::ImageConfig;

#[cfg(feature = "zmq")]
mod receiver;
#[cfg(feature = "zmq")]
mod sender;
#[cfg(feature = "zmq")]
mod wire;

#[cfg(feature = "zmq")]
pub use receiver::{EventReceiver, Received, ReceiverOptions};
#[cfg(feature = "zmq")]
pub use sender::EventSender;
#[cfg(feature = "zmq")]
pub use wire::{EventError, decode, encode};

/// One event, in the order in which the agent saw it happen.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentEvent {
    /// The agent is there, with these capabilities. Sent at start and at every change.
    InstanceHeartbeat(AgentInfo),
    /// The agent has started completely. Its first heartbeat has said everything before.
    InstanceStarted {
        agent: AgentId,
    },
    /// The agent leaves, for the reason given.
    InstanceTerminated {
        agent: AgentId,
        reason: String,
    },
    KernelPreparing {
        kernel: KernelId,
    },
    /// `image` is its canonical name.
    KernelPulling {
        kernel: KernelId,
        image: String,
    },
    KernelCreating {
        kernel: KernelId,
    },
    KernelStarted {
        kernel: KernelId,
    },
    /// The kernel is gone. `generation` tells a restarted kernel's first life from its second; 19.06 agents do not
    /// send it. `stats` is the last statistics map, if any was gathered.
    KernelTerminated {
        kernel: KernelId,
        reason: String,
        generation: Option<u64>,
        stats: Option<serde_json::Value>,
    },
}

/// What a heartbeat says.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentInfo {
    pub id: AgentId,
    pub region: String,
    /// RPC endpoint; `inproc://…` for an agent in the manager's own process.
    pub addr: String,
    pub version: String,
    pub available_slots: ResourceSlot,
    /// Types of the slots above.
    pub slot_types: SlotTypes,
    pub compute_plugins: serde_json::Value,
    /// Images that the agent itself provides (process runtime), to be put in the catalogue.
    pub images: Vec<AgentImage>,
    /// Images of the catalogue that are on the agent's host already, by the names that its runtime has for them.
    pub installed: Vec<InstalledImage>,
}

impl AgentInfo {
    /// Whether the agent has this very image, so that nothing has to be fetched.
    pub fn has(&self, image: &ImageConfig) -> bool {
        self.installed
            .iter()
            .any(|installed| installed.id == image.digest)
            || self
                .images
                .iter()
                .any(|brought| brought.canonical == image.canonical)
    }
}

/// An image on an agent's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledImage {
    /// As Docker shows it among `RepoTags`: without the registry for Docker Hub.
    pub repo_tag: String,
    /// `sha256:…`
    pub id: String,
}

/// An image that exists on an agent's host without a registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentImage {
    /// `registry/name:tag`.
    pub canonical: String,
    /// Stable text that changes when the image does, `sha256:…`.
    pub digest: String,
    pub labels: BTreeMap<String, String>,
    /// Short names that should lead to it, most general first (`python`, `python:3.11`).
    pub aliases: Vec<String>,
    /// Minimum and maximum amounts by slot, as the catalogue stores them (`resource/<slot>/min`).
    pub resource_min: BTreeMap<String, String>,
}

impl From<&AgentImage> for ImageConfig {
    /// For a kernel on that host; there is nothing to fetch.
    fn from(image: &AgentImage) -> Self {
        Self {
            canonical: image.canonical.clone(),
            digest: image.digest.clone(),
            labels: image.labels.clone(),
            ..Self::default()
        }
    }
}
