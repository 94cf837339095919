//! What a kernel's configuration means on this host: its image, folders, variables and ports. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use bai_proto::agent::{AgentError, KernelConfig, Mount, ServicePort};

use super::state::BoundFolder;
use crate::error;
use crate::resource::accelerator::Given;

/// Inside a container the runner listens here; services may not.
const REPL_PORTS: [u16; 2] = [2000, 2001];
/// Before a service's name, the label with a shell command that runs it.
const SERVICE_LABEL: &str = "bai.service.";
/// Ports below need privileges.
const LAST_PRIVILEGED_PORT: u16 = 1024;

/// The folders of `mounts`, at `<root>/<host>/<prefix>/<id>`.
///
/// # Errors
/// `ValueError` for a name, host or id that is not plain.
pub(crate) fn folders(mounts: &[Mount], root: &Path, prefix: &str) -> Result<Vec<BoundFolder>, AgentError> {
    let is_plain =
        |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    let folder = |mount: &Mount| {
        let is_id = mount.folder.len() == 32 && mount.folder.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_plain(&mount.name) || !is_plain(&mount.host) || !is_id {
            return Err(error::value(format!(
                "malformed mount: {} of {}",
                mount.name, mount.host
            )));
        }
        let host = root
            .join(&mount.host)
            .join(prefix.trim_matches('/'))
            .join(&mount.folder);
        Ok(BoundFolder {
            name: mount.name.clone(),
            host,
            writable: mount.writable,
        })
    };
    mounts.iter().map(folder).collect()
}

/// The services that an image offers (`ai.backend.service-ports`, `name:protocol:port`), without host ports.
///
/// # Errors
/// `ValueError` for a malformed entry.
pub(crate) fn services(labels: &BTreeMap<String, String>) -> Result<Vec<ServicePort>, AgentError> {
    let entries = labels.get("ai.backend.service-ports").map_or("", String::as_str);
    let entries = entries
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let service = |entry: &str| {
        let malformed = || error::value(format!("malformed service port: {entry}"));
        let mut fields = entry.split(':');
        let (name, protocol, port) = (fields.next(), fields.next(), fields.next());
        let (Some(name), Some(protocol), Some(port), None) = (name, protocol, port, fields.next()) else {
            return Err(malformed());
        };
        let container_port: u16 = port.parse().map_err(|_| malformed())?;
        let is_legal = container_port > LAST_PRIVILEGED_PORT && !REPL_PORTS.contains(&container_port);
        if name.is_empty() || !matches!(protocol, "tcp" | "http" | "pty") || !is_legal {
            return Err(malformed());
        }
        Ok(ServicePort {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            container_port,
            host_port: 0,
        })
    };
    entries.map(service).collect()
}

/// The commands of services that the image names (`bai.service.<name>`).
pub(crate) fn service_commands(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let named = |(label, command): (&String, &String)| {
        Some((label.strip_prefix(SERVICE_LABEL)?.to_owned(), command.clone()))
    };
    labels.iter().filter_map(named).collect()
}

/// The kernel's variables: those asked for, and above them what the image wants to be told (6.10): the number of cores, the
/// user's id; and what its devices want.
pub(crate) fn environ(
    config: &KernelConfig,
    labels: &BTreeMap<String, String>,
    cores: usize,
    uid: u32,
    devices: &Given,
) -> BTreeMap<String, String> {
    let mut environ = config.environ.clone();
    let names = labels.get("ai.backend.envs.corecount").map_or("", String::as_str);
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        environ.insert(name.to_owned(), cores.to_string());
    }
    let features = labels.get("ai.backend.features").map_or("", String::as_str);
    if features
        .split_ascii_whitespace()
        .any(|feature| feature == "uid-match")
    {
        environ.insert("LOCAL_USER_ID".to_owned(), uid.to_string());
    }
    environ.extend(devices.environ.clone());
    environ
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn service_ports_are_read_and_malformed_ones_refused() {
        let ports = services(&labels(
            "ai.backend.service-ports",
            "ipython:pty:3000,jupyter:http:8080",
        ))
        .expect("legal");
        assert_eq!(ports.len(), 2);
        assert_eq!(
            (ports[1].name.as_str(), ports[1].container_port),
            ("jupyter", 8080)
        );
        for bad in [
            "x",
            "x:tcp",
            "x:tcp:80",
            "x:tcp:2001",
            "x:udp:3000",
            "x:tcp:99999",
            ":tcp:3000",
            "x:tcp:3000:4",
        ] {
            assert!(
                services(&labels("ai.backend.service-ports", bad)).is_err(),
                "{bad}"
            );
        }
        assert_eq!(services(&BTreeMap::new()), Ok(Vec::new()));
    }

    #[test]
    fn folders_cannot_lead_elsewhere() {
        let mount = |name: &str, host: &str, folder: &str| Mount {
            name: name.into(),
            host: host.into(),
            folder: folder.into(),
            writable: true,
        };
        let id = "00112233445566778899aabbccddeeff";
        let legal = folders(&[mount("data", "local", id)], Path::new("/mnt"), "fs/prefix").expect("legal");
        assert_eq!(legal[0].host, Path::new("/mnt/local/fs/prefix").join(id));
        for bad in [
            mount("..", "local", id),
            mount("a/b", "local", id),
            mount("a", "..", id),
            mount("a", "local", "../x"),
        ] {
            assert!(folders(&[bad], Path::new("/mnt"), "").is_err());
        }
    }
}
