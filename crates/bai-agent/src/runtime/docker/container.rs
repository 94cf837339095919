//! What a kernel's container is, as the Engine API wants it said. Pure.
//!
//! Invariants: the container starts as root with the capabilities that becoming the session's user takes, and with no
//! others; nothing in it can bring privileges back; the runner's socket lies below a folder that only root enters.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountTmpfsOptions, MountType,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use super::Options;
use crate::runtime::socket::SOCKET;
use crate::runtime::{KernelSpec, RuntimeError};

/// Marks the containers of one agent; the value is [`Options::owner`].
pub const OWNER_LABEL: &str = "bai.owner";
/// The kernel's id.
pub const KERNEL_LABEL: &str = "bai.kernel";
/// The kernel's folder on the host.
pub const SCRATCH_LABEL: &str = "bai.scratch";

/// Our program inside.
pub const RUNNER: &str = "/opt/bai/bai-runner";
/// Its folder is a file system of its own, with which nobody but root can do anything, whoever owns what is below.
const GATE: &str = "/opt/bai/private";
const RUN: &str = "/opt/bai/private/run";
const WORK: &str = "/home/work";
pub const CONFIG: &str = "/home/config";

/// Microseconds of a scheduler period; the quota is as many for each CPU (`agent-protocol.md` 7.6).
const CPU_PERIOD: i64 = 100_000;
/// Bytes of the container's log, which only holds what the runner has to complain about.
const LOG_SIZE: &str = "256k";

/// The user that a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// `kernel.<image>.<kernel id>`, by which 19.06 tools know a session's container (`agent-protocol.md` 7.7).
pub fn name(spec: &KernelSpec) -> String {
    let base = spec.image.rsplit('/').next().unwrap_or_default();
    let base = base.split([':', '@']).next().unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let base: String = base.chars().filter(is_plain).collect();
    format!("kernel.{base}.{}", spec.kernel)
}

/// The container of a kernel.
///
/// # Errors
/// When a path cannot be said in JSON.
pub fn describe(
    spec: &KernelSpec,
    options: &Options,
    user: User,
    is_agent_root: bool,
) -> Result<ContainerCreateBody, RuntimeError> {
    let mut cmd = vec![
        "container".to_owned(),
        user.uid.to_string(),
        user.gid.to_string(),
        format!("{RUN}/{SOCKET}"),
        network(options).to_owned(),
        spec.runtime_type.clone(),
    ];
    cmd.extend(spec.runtime_path.clone());
    let labels = HashMap::from([
        (OWNER_LABEL.to_owned(), options.owner.clone()),
        (KERNEL_LABEL.to_owned(), spec.kernel.to_string()),
        (SCRATCH_LABEL.to_owned(), plain(&spec.scratch)?),
    ]);
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: Some(vec![RUNNER.to_owned()]),
        cmd: Some(cmd),
        user: Some("0:0".to_owned()),
        env: Some(environ(spec)),
        working_dir: Some(WORK.to_owned()),
        hostname: Some("kernel".to_owned()),
        labels: Some(labels),
        host_config: Some(HostConfig {
            mounts: Some(mounts(spec, options)?),
            ..limited(spec, options, is_agent_root)
        }),
        ..ContainerCreateBody::default()
    })
}

/// A container that only looks at an image of which nothing is known.
///
/// # Errors
/// As [`describe`].
pub fn describe_look(image: &str, options: &Options) -> Result<ContainerCreateBody, RuntimeError> {
    let nobody = KernelSpec {
        memory: 64 << 20,
        ..KernelSpec::unknown(bai_model::KernelId(uuid::Uuid::nil()), Default::default())
    };
    let limits = limited(&nobody, options, true);
    Ok(ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec![RUNNER.to_owned()]),
        cmd: Some(vec!["languages".to_owned()]),
        user: Some("65534:65534".to_owned()),
        labels: Some(HashMap::from([(OWNER_LABEL.to_owned(), options.owner.clone())])),
        host_config: Some(HostConfig {
            mounts: Some(vec![bind(&options.runner, RUNNER, false)?]),
            network_mode: Some("none".to_owned()),
            cap_add: None,
            ..limits
        }),
        ..ContainerCreateBody::default()
    })
}

/// Limits and protections, of every container.
fn limited(spec: &KernelSpec, options: &Options, is_agent_root: bool) -> HostConfig {
    let memory = i64::try_from(spec.memory).ok().filter(|memory| *memory > 0);
    let cpus: Vec<String> = spec.cpu_set.iter().map(ToString::to_string).collect();
    let count = i64::try_from(cpus.len()).unwrap_or(i64::MAX);
    let mut added = vec!["SETUID".to_owned(), "SETGID".to_owned()];
    if !is_agent_root {
        // The run folder belongs to the agent's user then, and root opens the socket in it.
        added.push("DAC_OVERRIDE".to_owned());
    }
    HostConfig {
        network_mode: options.network.clone(),
        memory,
        memory_swap: memory,
        // Counts as memory, like everything in it.
        shm_size: memory.map(|memory| memory / 2),
        cpuset_cpus: Some(cpus.join(",")).filter(|set| !set.is_empty()),
        cpu_period: (count > 0).then_some(CPU_PERIOD),
        cpu_quota: (count > 0).then(|| count.saturating_mul(CPU_PERIOD)),
        pids_limit: Some(i64::from(options.processes)),
        device_requests: gpus(spec),
        ulimits: Some(vec![
            // How many files may be open is the engine's to say: only it knows what it may raise.
            // A session's dumps would land wherever the host wants them.
            ulimit("core", 0),
        ]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(added),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        // Ours reaps orphans itself.
        init: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            ..RestartPolicy::default()
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), LOG_SIZE.to_owned()),
                ("max-file".to_owned(), "1".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    }
}

/// NVIDIA's devices, given by its hook of the engine.
fn gpus(spec: &KernelSpec) -> Option<Vec<DeviceRequest>> {
    let request = DeviceRequest {
        driver: Some("nvidia".to_owned()),
        device_ids: Some(spec.gpus.clone()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    };
    (!spec.gpus.is_empty()).then(|| vec![request])
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    }
}

/// For the runner: whether the container has a network that no other process uses.
fn network(options: &Options) -> &'static str {
    match options.network.as_deref() {
        Some(name) if name == "host" || name.starts_with("container:") => "host",
        _ => "own",
    }
}

/// What Docker would set for root, and our defaults, below what was asked for.
fn environ(spec: &KernelSpec) -> Vec<String> {
    let mut environ = spec.environ.clone();
    for (name, value) in [("HOME", WORK), ("USER", "work")] {
        environ.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    environ
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// Mounts and not "binds": an engine makes a missing folder of a bind, as root, and here a missing folder is an error.
fn mounts(spec: &KernelSpec, options: &Options) -> Result<Vec<Mount>, RuntimeError> {
    let gate = Mount {
        target: Some(GATE.to_owned()),
        typ: Some(MountType::TMPFS),
        tmpfs_options: Some(MountTmpfsOptions {
            mode: Some(0o700),
            size_bytes: Some(64 << 10),
            ..MountTmpfsOptions::default()
        }),
        ..Mount::default()
    };
    let mut mounts = vec![
        bind(&options.runner, RUNNER, false)?,
        gate,
        bind(&spec.scratch.join("run"), RUN, true)?,
        bind(&spec.scratch.join("config"), CONFIG, false)?,
        bind(&spec.scratch.join("work"), WORK, true)?,
    ];
    for (source, target, writable) in &spec.binds {
        mounts.push(bind(source, inside(target)?, *writable)?);
    }
    Ok(mounts)
}

/// Folders are mounted below the work folder, wherever their names try to lead.
fn inside(target: &str) -> Result<&str, RuntimeError> {
    let rest = target.strip_prefix(WORK).and_then(|rest| rest.strip_prefix('/'));
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    match rest {
        Some(rest) if rest.split('/').all(is_plain) => Ok(target),
        _ => Err(RuntimeError::Start(format!(
            "a folder cannot be mounted at {target}: it is not below {WORK}"
        ))),
    }
}

fn bind(source: &Path, target: &str, writable: bool) -> Result<Mount, RuntimeError> {
    Ok(Mount {
        target: Some(target.to_owned()),
        source: Some(plain(source)?),
        typ: Some(MountType::BIND),
        read_only: Some(!writable),
        ..Mount::default()
    })
}

fn plain(path: &Path) -> Result<String, RuntimeError> {
    let path = path
        .to_str()
        .ok_or_else(|| RuntimeError::Start(format!("the path {} is not UTF-8", path.display())))?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn spec() -> KernelSpec {
        let id = "00112233-4455-6677-8899-aabbccddeeff".parse().expect("an id");
        KernelSpec {
            image: "index.docker.io/lablup/python:3.6".to_owned(),
            environ: BTreeMap::from([("A".to_owned(), "1=2".to_owned())]),
            cpu_set: vec![1, 3],
            memory: 256 << 20,
            runtime_type: "python".to_owned(),
            runtime_path: Some("/usr/bin/python3".to_owned()),
            ..KernelSpec::unknown(bai_model::KernelId(id), PathBuf::from("/srv/scratch/k"))
        }
    }

    fn host(spec: &KernelSpec, is_root: bool) -> HostConfig {
        let user = User { uid: 9001, gid: 9001 };
        let options = Options::new(PathBuf::from("/srv/bin/bai-runner"), "/srv".to_owned());
        let body = describe(spec, &options, user, is_root).expect("sayable");
        body.host_config.expect("limits")
    }

    #[test]
    fn limits_are_those_of_the_kernel() {
        let host = host(&spec(), true);
        assert_eq!(
            (host.memory, host.memory_swap),
            (Some(256 << 20), Some(256 << 20))
        );
        assert_eq!(host.cpuset_cpus.as_deref(), Some("1,3"));
        assert_eq!((host.cpu_period, host.cpu_quota), (Some(100_000), Some(200_000)));
        assert_eq!(host.pids_limit, Some(1024));
        let unlimited = KernelSpec {
            memory: 0,
            cpu_set: Vec::new(),
            ..spec()
        };
        let host = self::host(&unlimited, true);
        assert_eq!(
            (host.memory, host.cpuset_cpus, host.cpu_quota),
            (None, None, None)
        );
    }

    #[test]
    fn devices_are_asked_for_by_name() {
        assert_eq!(host(&spec(), true).device_requests, None);
        let spec = KernelSpec {
            gpus: vec!["GPU-1".to_owned()],
            ..spec()
        };
        let requests = host(&spec, true).device_requests.expect("devices");
        assert_eq!(requests[0].driver.as_deref(), Some("nvidia"));
        assert_eq!(requests[0].device_ids, Some(vec!["GPU-1".to_owned()]));
        assert_eq!(requests[0].capabilities, Some(vec![vec!["gpu".to_owned()]]));
    }

    #[test]
    fn privileges_are_those_of_becoming_somebody_else() {
        let host = host(&spec(), true);
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add, Some(vec!["SETUID".to_owned(), "SETGID".to_owned()]));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!(host.privileged, Some(false));
        let host = self::host(&spec(), false);
        assert!(host.cap_add.expect("some").contains(&"DAC_OVERRIDE".to_owned()));
    }

    #[test]
    fn folders_stay_below_the_work_folder() {
        for (target, is_legal) in [
            ("/home/work/data", true),
            ("/home/work/../../etc", false),
            ("/home/work/", false),
            ("/home/worker/x", false),
            ("/opt/bai/private/run", false),
            ("/etc", false),
        ] {
            let mut spec = spec();
            spec.binds.push(("/mnt/x".into(), target.to_owned(), true));
            let options = Options::new(PathBuf::from("/r"), String::new());
            assert_eq!(mounts(&spec, &options).is_ok(), is_legal, "{target}");
        }
    }

    #[test]
    fn names_are_those_of_the_original() {
        assert_eq!(
            name(&spec()),
            "kernel.python.00112233-4455-6677-8899-aabbccddeeff"
        );
        let by_id = KernelSpec {
            image: "sha256:abc".to_owned(),
            ..spec()
        };
        assert!(name(&by_id).starts_with("kernel.sha256."));
    }

    #[test]
    fn a_home_is_set_and_can_be_chosen() {
        assert!(environ(&spec()).contains(&"HOME=/home/work".to_owned()));
        assert!(environ(&spec()).contains(&"A=1=2".to_owned()));
        let mut chosen = spec();
        chosen.environ.insert("HOME".to_owned(), "/x".to_owned());
        assert!(environ(&chosen).contains(&"HOME=/x".to_owned()));
    }
}
