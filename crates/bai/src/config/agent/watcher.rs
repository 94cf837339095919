//! `[watcher]`: the daemon beside an agent, which starts and stops it (`agent-protocol.md` 7.12).

use std::path::PathBuf;

use serde::Serialize;

use crate::config::bai::local;
use crate::config::section::Problems;
use crate::config::value::{HostPort, boolean, existing_file, host_port, path, text};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Watcher {
    /// Loopback unless said otherwise, unlike 19.06.
    pub service_addr: HostPort,
    pub ssl_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_key: Option<PathBuf>,
    /// The unit of systemd that is the agent.
    pub target_service: String,
    pub soft_reset_available: bool,
    /// Although everybody knows the token of a site that has not set `config/watcher/token`.
    pub allow_default_token: bool,
}

impl Watcher {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "sections are read alike, whatever they need"
    )]
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("watcher", false);
        let service_addr = section.or("service-addr", local(6009), host_port);
        let ssl_enabled = section.or("ssl-enabled", false, boolean);
        let read = if ssl_enabled { existing_file } else { path };
        let ssl_cert = section.filled("ssl-cert", read);
        // The original documents the one and reads the other.
        let (key, privkey) = (
            section.filled("ssl-key", read),
            section.filled("ssl-privkey", read),
        );
        let ssl_key = key.or(privkey);
        for (name, file) in [("ssl-cert", &ssl_cert), ("ssl-key", &ssl_key)] {
            if ssl_enabled && file.is_none() {
                section.wrong(
                    name,
                    format!("is missing: add `{name} = \"/etc/backend.ai/watcher.pem\"` to [watcher]"),
                );
            }
        }
        let target_service = section.or("target-service", "backendai-agent.service".to_owned(), text);
        let soft_reset_available = section.or("soft-reset-available", false, boolean);
        let allow_default_token = section.or("allow-default-token", false, boolean);
        section.end();
        Some(Self {
            service_addr,
            ssl_enabled,
            ssl_cert,
            ssl_key,
            target_service,
            soft_reset_available,
            allow_default_token,
        })
    }
}
