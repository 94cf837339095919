//! `[bai]`: what 19.06 has no key for. The original ignores the table.

use std::path::PathBuf;

use serde::Serialize;

use super::Address;
use super::section::Problems;
use super::value::{HostPort, absolute_path, address, boolean, seconds};

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
        })
    }
}

/// This port on this host alone.
pub(super) fn local(port: u16) -> HostPort {
    HostPort {
        host: "127.0.0.1".to_owned(),
        port,
    }
}
