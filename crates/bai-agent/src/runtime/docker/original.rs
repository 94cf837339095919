//! Containers of an agent of 19.06 on this engine (`agent-protocol.md` 7.7, 7.9).
//!
//! They have no labels but those of their image; what makes one a session is its name, `kernel.<image>.<kernel id>`, and
//! whose it is shows where its `/home/config` comes from.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bai_model::KernelId;
use bollard::models::{ContainerInspectResponse, ContainerSummary, PortMap};
use bollard::query_parameters::{ListContainersOptionsBuilder, LogsOptionsBuilder};
use futures_util::TryStreamExt;

use super::container::{CONFIG, OWNER_LABEL};
use super::engine::{Engine, EngineError};
use super::{inspect, remove};
use crate::runtime::Inherited;

/// Bytes of a container's log that are told, from its end on.
const MAX_LOG: usize = 1 << 20;

/// The kernel that a container with this name is.
pub fn kernel_of(name: &str) -> Option<KernelId> {
    let name = name.trim_start_matches('/').strip_prefix("kernel.")?;
    name.rsplit('.').next()?.parse().ok()
}

/// The container whose volume the runner's programs are in.
pub fn companion_of(kernel: KernelId) -> String {
    format!("kernel-env.{kernel}")
}

/// Containers whose folders are in `scratch_root`. Others are named in the log.
///
/// # Errors
/// When the engine does not answer.
pub async fn find(engine: &Engine, scratch_root: &Path) -> Result<Vec<Inherited>, EngineError> {
    let listed = named(engine, "^/?kernel\\.").await?;
    remove_companions(engine, &listed, scratch_root).await?;
    let mut found = Vec::new();
    for container in listed {
        if container.labels.unwrap_or_default().contains_key(OWNER_LABEL) {
            continue;
        }
        // One that has gone meanwhile is nobody's.
        let Some(described) = inspect(engine, container.id.as_deref().unwrap_or_default()).await? else {
            continue;
        };
        match understand(described, scratch_root) {
            Some(inherited) => found.push(inherited),
            None => tracing::warn!(
                container = container.id,
                "a session of another agent, whose folder is not below this agent's `container.scratch-root`, runs on this engine; if nobody serves it, end it with `docker rm -f`"
            ),
        }
    }
    Ok(found)
}

/// All containers, running or not, whose names fit.
async fn named(engine: &Engine, pattern: &str) -> Result<Vec<ContainerSummary>, EngineError> {
    let filters = HashMap::from([("name", vec![pattern])]);
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    engine
        .ask("list containers", engine.api.list_containers(Some(options)))
        .await
}

/// A companion whose container is gone, and whose kernel has a folder here, is of no use.
async fn remove_companions(
    engine: &Engine,
    sessions: &[ContainerSummary],
    scratch_root: &Path,
) -> Result<(), EngineError> {
    let names = |container: &ContainerSummary| container.names.clone().unwrap_or_default();
    let living: Vec<KernelId> = sessions
        .iter()
        .flat_map(names)
        .filter_map(|name| kernel_of(&name))
        .collect();
    for companion in named(engine, "^/?kernel-env\\.").await? {
        let name = names(&companion).into_iter().next().unwrap_or_default();
        let kernel = name.rsplit('.').next().and_then(|id| id.parse::<KernelId>().ok());
        let Some(kernel) = kernel.filter(|kernel| !living.contains(kernel)) else {
            continue;
        };
        if scratch_root.join(kernel.to_string()).exists() {
            remove(engine, &companion_of(kernel)).await?;
        }
    }
    Ok(())
}

fn understand(container: ContainerInspectResponse, scratch_root: &Path) -> Option<Inherited> {
    let kernel = kernel_of(container.name.as_deref()?)?;
    let mounts = container.mounts.unwrap_or_default();
    let config = mounts
        .into_iter()
        .find(|mount| mount.destination.as_deref() == Some(CONFIG))?;
    let expected = scratch_root.join(kernel.to_string()).join("config");
    if resolved(Path::new(config.source.as_deref()?)) != resolved(&expected) {
        return None;
    }
    let host = container.host_config.unwrap_or_default();
    let config = container.config.unwrap_or_default();
    Some(Inherited {
        kernel,
        container_id: container.id?,
        // Not the name, which may mean another image by now.
        image: container.image.or(config.image)?,
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        ports: ports(host.port_bindings.unwrap_or_default()),
        cpu_set: numbers(host.cpuset_cpus.as_deref().unwrap_or_default()),
        memory: host
            .memory
            .and_then(|memory| u64::try_from(memory).ok())
            .unwrap_or(0),
    })
}

/// The same for two ways to one folder.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Host addresses by container ports, of `{"2000/tcp": [{"HostIp": "", "HostPort": "30000"}]}`.
fn ports(bindings: PortMap) -> std::collections::BTreeMap<u16, SocketAddr> {
    let binding = |(inside, outside): (String, Option<Vec<bollard::models::PortBinding>>)| {
        let inside = inside.strip_suffix("/tcp")?.parse().ok()?;
        let first = outside?.into_iter().next()?;
        let address = first.host_ip.and_then(|address| address.parse::<IpAddr>().ok());
        // What is published everywhere is reached nearest by.
        let address = address.filter(|address| !address.is_unspecified());
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        Some((inside, SocketAddr::new(address, first.host_port?.parse().ok()?)))
    };
    bindings.into_iter().filter_map(binding).collect()
}

/// `0,2-3`.
fn numbers(list: &str) -> Vec<usize> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: Option<std::ops::RangeInclusive<usize>> = first
            .trim()
            .parse()
            .ok()
            .zip(last.trim().parse().ok())
            .map(|(first, last)| first..=last);
        range
    };
    list.split(',').filter_map(part).flatten().collect()
}

/// The end of what a container has printed, as its terminal got it.
///
/// # Errors
/// When the engine does not tell.
pub async fn printed(engine: &Engine, id: &str) -> Result<String, EngineError> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let gathering = engine
        .api
        .logs(id, Some(options))
        .try_fold(Vec::new(), |mut kept, output| async move {
            kept.extend_from_slice(output.as_ref());
            if kept.len() > 2 * MAX_LOG {
                kept.drain(..kept.len() - MAX_LOG);
            }
            Ok(kept)
        });
    let printed: Vec<u8> = engine.ask("give a container's log", gathering).await?;
    let end = &printed[printed.len().saturating_sub(MAX_LOG)..];
    Ok(String::from_utf8_lossy(end).into_owned())
}

#[cfg(test)]
mod tests {
    use bollard::models::PortBinding;

    use super::*;

    #[test]
    fn names_are_understood() {
        let id = "00112233-4455-6677-8899-aabbccddeeff";
        let kernel = Some(KernelId(id.parse().expect("an id")));
        assert_eq!(kernel_of(&format!("/kernel.python.{id}")), kernel);
        assert_eq!(kernel_of(&format!("kernel.python-ff.1.{id}")), kernel);
        for stranger in [
            format!("kernel-env.{id}"),
            "kernel.python.x".to_owned(),
            id.to_owned(),
        ] {
            assert_eq!(kernel_of(&stranger), None, "{stranger}");
        }
    }

    #[test]
    fn published_ports_are_found_where_they_are() {
        let binding = |ip: &str, port: &str| {
            Some(vec![PortBinding {
                host_ip: Some(ip.to_owned()),
                host_port: Some(port.to_owned()),
            }])
        };
        let found = ports(PortMap::from([
            ("2000/tcp".to_owned(), binding("0.0.0.0", "30000")),
            ("2001/tcp".to_owned(), binding("", "30001")),
            ("8080/tcp".to_owned(), binding("10.0.0.7", "30002")),
            ("53/udp".to_owned(), binding("", "30003")),
            ("9000/tcp".to_owned(), None),
        ]));
        let found: Vec<String> = found
            .iter()
            .map(|(inside, outside)| format!("{inside} {outside}"))
            .collect();
        assert_eq!(
            found,
            [
                "2000 127.0.0.1:30000",
                "2001 127.0.0.1:30001",
                "8080 10.0.0.7:30002"
            ]
        );
    }

    #[test]
    fn sets_of_cpus_are_read() {
        assert_eq!(numbers("0,2-4"), [0, 2, 3, 4]);
        assert_eq!(numbers(""), [0; 0]);
    }
}
