//! `[agent]`: this process: who it is, where it listens.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use toml::Value;

use crate::config::section::Problems;
use crate::config::value::{Read, host_port, path, slug, text};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Where calls are taken, and what managers are told.
    pub rpc_listen_addr: ListenAddr,
    /// Different for every host of a site. `i-<host name>` when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `local` when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whose settings in etcd apply.
    pub scaling_group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
}

/// A port on an address of this host, which is found out when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    pub host: Option<String>,
    pub port: u16,
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, ":{}", self.port),
        }
    }
}

impl Serialize for ListenAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As [`host_port`], with an empty host for any.
fn listen_addr(value: &Value) -> Read<ListenAddr> {
    let (host, port) = match value {
        Value::Table(table) => (table.get("host").cloned(), table.get("port").cloned()),
        Value::Array(pair) if pair.len() == 2 => (pair.first().cloned(), pair.last().cloned()),
        Value::String(text) => match text.strip_prefix(':') {
            Some(port) => (None, Some(Value::from(port))),
            None => return host_port(value).and_then(named),
        },
        _ => return host_port(value).and_then(named),
    };
    match host {
        Some(Value::String(host)) if !host.is_empty() => host_port(value).and_then(named),
        Some(Value::String(_)) | None => {
            // Any name will do to have the port read.
            let port = port.unwrap_or(Value::Integer(6001));
            let read = host_port(&Value::Array(vec![Value::from("any"), port]))?;
            let port = read.port;
            Ok(ListenAddr { host: None, port })
        }
        Some(_) => host_port(value).and_then(named),
    }
}

/// An address that managers can be told.
fn named(address: crate::config::HostPort) -> Read<ListenAddr> {
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match address.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || is_link_local(&ip) => Err(format!(
            "must be an address under which managers reach this host, or have an empty host to have one found; it is {ip}"
        )),
        _ => Ok(ListenAddr {
            host: Some(address.host),
            port: address.port,
        }),
    }
}

impl Node {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("agent", true);
        let anywhere = ListenAddr {
            host: None,
            port: 6001,
        };
        let rpc_listen_addr = section.or("rpc-listen-addr", anywhere, listen_addr);
        let id = section.filled("id", slug(1..=64));
        let region = section.filled("region", text);
        let scaling_group = section.or("scaling-group", "default".to_owned(), slug(1..=64));
        let pid_file = section
            .filled("pid-file", path)
            .filter(|path| path != Path::new("/dev/null"));
        section.ignored(&["instance-type"]);
        section.end();
        Some(Self {
            rpc_listen_addr,
            id,
            region,
            scaling_group,
            pid_file,
        })
    }
}
