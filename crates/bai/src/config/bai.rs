//! `[bai]`: what 19.06 has no key for. The original ignores the table.

use std::path::PathBuf;

use serde::Serialize;

use super::Address;
use super::section::{Problems, Section};
use super::value::{
    HostPort, absolute_path, address, boolean, existing_file, host_port, list, network, seconds,
};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bai {
    /// In place of `[db]`: `postgres://…` with options of TLS, `sqlite:///file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Address>,
    /// In place of `etcd.addr`, `user` and `password`: `etcd://host,host…?tls=true`, `embedded:///file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_store: Option<Address>,
    /// In place of etcd's `config/redis/*`: `redis://…`, `rediss://…`, `memory:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<Address>,
    /// Seconds that a start waits for services that are not there yet.
    pub start_timeout: f64,
    /// Seconds that requests may take to end when the server stops.
    pub drain_timeout: f64,
    /// Where this host keeps what is its own: the keys of the first accounts, the sessions of `local-agent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Run sessions on this host too, as sandboxed processes.
    pub local_agent: bool,
    /// Although others can reach `manager.service-addr` and sandboxed processes are no boundary against them.
    pub allow_process_runtime: bool,
    /// What agents are told instead of `manager.event-listen-addr`, where they reach this host by another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_advertise_addr: Option<HostPort>,
    /// Addresses and networks that may send events; all when there are none.
    pub event_peers: Vec<String>,
    /// Refuse events that do not come from the address at which their agent is called.
    pub check_event_sources: bool,
    /// Encrypted and mutually authenticated events and calls; only with agents that do so too.
    #[serde(flatten)]
    pub agent_tls: Option<AgentTls>,
}

/// PEM files for what managers and agents say to each other (`docs/adr/0010-encrypted-transport.md`).
#[derive(Clone, Debug, Serialize)]
pub struct AgentTls {
    /// Whoever signs the certificates of the site's managers and agents.
    #[serde(rename = "agent-tls-authority")]
    pub authority: PathBuf,
    #[serde(rename = "agent-tls-cert")]
    pub cert: PathBuf,
    #[serde(rename = "agent-tls-key")]
    pub key: PathBuf,
}

impl Bai {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("bai", false);
        let database = section.filled(
            "database",
            address(&["postgres://", "postgresql://", "sqlite:///"]),
        );
        let config_store = section.filled("config-store", address(&["etcd://", "embedded:///"]));
        let broker = section.filled("broker", address(&["redis://", "rediss://", "memory:"]));
        let start_timeout = section.or("start-timeout", 60.0, seconds(0.0));
        let drain_timeout = section.or("drain-timeout", 60.0, seconds(0.0));
        let data_dir = section.filled("data-dir", absolute_path);
        let local_agent = section.or("local-agent", false, boolean);
        if local_agent && data_dir.is_none() {
            section.wrong(
                "local-agent",
                "needs a directory for its sessions: add `data-dir = \"/var/lib/bai\"` to [bai]",
            );
        }
        let allow_process_runtime = section.or("allow-process-runtime", false, boolean);
        let event_advertise_addr = section.filled("event-advertise-addr", host_port);
        let event_peers = section.or("event-peers", Vec::new(), list(network));
        let check_event_sources = section.or("check-event-sources", false, boolean);
        let agent_tls = agent_tls(&mut section);
        section.end();
        Some(Self {
            database,
            config_store,
            broker,
            start_timeout,
            drain_timeout,
            data_dir,
            local_agent,
            allow_process_runtime,
            event_advertise_addr,
            event_peers,
            check_event_sources,
            agent_tls,
        })
    }
}

/// All three files, or none.
fn agent_tls(section: &mut Section<'_, '_>) -> Option<AgentTls> {
    const KEYS: [&str; 3] = ["agent-tls-authority", "agent-tls-cert", "agent-tls-key"];
    let files = KEYS.map(|key| section.filled(key, existing_file));
    let is_wanted = files.iter().any(Option::is_some);
    for (key, _) in KEYS
        .iter()
        .zip(&files)
        .filter(|(_, file)| is_wanted && file.is_none())
    {
        section.wrong(key, format!("is missing: {} belong together", KEYS.join(", ")));
    }
    let [Some(authority), Some(cert), Some(key)] = files else {
        return None;
    };
    Some(AgentTls { authority, cert, key })
}

/// This port on this host alone.
pub(super) fn local(port: u16) -> HostPort {
    HostPort {
        host: "127.0.0.1".to_owned(),
        port,
    }
}
