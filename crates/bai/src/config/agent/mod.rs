//! `agent.toml`: the configuration of an agent and of the watcher of its host (`agent-protocol.md` 7.1, 7.12).
//!
//! Invariants: a file of 19.06 works as it is; what it asks for and cannot get is a note.

mod container;
mod node;
mod own;
mod resource;
#[cfg(test)]
mod tests;
mod watcher;

use serde::Serialize;

pub use container::{Container, PortRange, ScratchType};
pub use node::{ListenAddr, Node};
pub use own::{Cloud, Cuda, Own, TlsFiles};
pub use resource::Resource;
pub use watcher::Watcher;

use super::environment::{self, Variables};
use super::section::Problems;
use super::{Configuration, Debug, Etcd, Logging};

/// A whole valid configuration.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentConfig {
    pub etcd: Etcd,
    pub agent: Node,
    pub container: Container,
    pub resource: Resource,
    pub watcher: Watcher,
    pub logging: Logging,
    pub debug: Debug,
    pub bai: Own,
}

impl Configuration for AgentConfig {
    const OF: &'static str = "agent";
    const FILE: &'static str = "agent.toml";
    const VARIABLES: &'static Variables = &environment::AGENT;

    fn read(problems: &mut Problems<'_>) -> Option<Self> {
        // All sections are read before any is missed, so that all problems are found.
        let (etcd, agent) = (Etcd::read(problems), Node::read(problems));
        let (container, resource) = (Container::read(problems), Resource::read(problems));
        let (watcher, own) = (Watcher::read(problems), Own::read(problems));
        let (logging, debug) = (
            Logging::read(problems),
            Debug::read_with(problems, &["skip-container-deletion"]),
        );
        problems.note_unknown_tables();
        Some(Self {
            etcd: etcd?,
            agent: agent?,
            container: container?,
            resource: resource?,
            watcher: watcher?,
            logging: logging?,
            debug,
            bai: own?,
        })
    }
}
