//! Takes over a kernel of an agent of 19.06, whose container still runs on this host, from what that agent has left
//! (`agent-protocol.md` 6.9, 7.7, 7.9): the container itself, `resource.txt` and `environ.txt`.
//!
//! Invariants: nothing of the container or of the session's files is changed; what the files do not say, or say wrongly,
//! is taken from the container; after [`take_over`] the kernel has a record as every kernel has it, and is found again by it.
//!
//! Not here: finding the containers (`runtime`), what is said to their runners (`wire`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bai_model::{BinarySize, ResourceSlot, RunId, SlotUnit, SlotValue};
use serde_json::Value;

use super::config_dir::{self, ResourceRecord};
use super::plan;
use super::run::UNNAMED;
use super::state::{BoundFolder, KernelState, Phase, note_active_run};
use crate::resource::Grant;
use crate::resource::accelerator::Thousandths;
use crate::resource::allocation::Share;
use crate::runtime::{Inherited, Runner};

/// Ports of the runner inside a container: what it takes, what it tells, and the same of its terminal.
const REPL: (u16, u16) = (2000, 2001);
const TERMINAL: (u16, u16) = (2002, 2003);

/// What a 19.06 agent has left in a kernel's folder.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub record: ResourceRecord,
    pub environ: BTreeMap<String, String>,
}

/// Whether the folder is one that a 19.06 agent has made, and none of ours.
pub(crate) fn is_of_original(scratch: &Path) -> bool {
    !scratch.join("run").exists() && scratch.join("config").join(config_dir::RESOURCE).exists()
}

impl Left {
    /// Reads both files leniently. Blocking.
    pub fn read(scratch: &Path) -> Self {
        let text = |name: &str| {
            let path = scratch.join("config").join(name);
            fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "a file of another agent cannot be read"),
                )
                .unwrap_or_default()
        };
        let (record, garbage) = ResourceRecord::parse(&text(config_dir::RESOURCE));
        for reason in garbage {
            tracing::warn!(path = %scratch.display(), reason, "a line of a kernel's resource.txt is skipped");
        }
        Self {
            record,
            environ: config_dir::read_environ(&text(config_dir::ENVIRON)),
        }
    }
}

/// The state of a kernel of another agent, without its number among ours; `None` if its runner cannot be reached. Pure.
pub(crate) fn state_of(inherited: &Inherited, left: Left) -> Option<KernelState> {
    let port = |port: u16| inherited.ports.get(&port).copied();
    let runner = Runner::Published {
        input: port(REPL.0)?,
        output: port(REPL.1)?,
    };
    let mut service_ports = plan::services(&inherited.labels).unwrap_or_default();
    service_ports.retain_mut(|service| {
        service.host_port = port(service.container_port).map_or(0, |address| address.port());
        service.host_port != 0
    });
    let terminal = port(TERMINAL.0).zip(port(TERMINAL.1));
    // The first two are known by their places.
    let own = [REPL.0, REPL.1];
    let others = inherited.ports.keys().filter(|port| !own.contains(port));
    let ports = own
        .iter()
        .chain(others)
        .filter_map(|number| Some(port(*number)?.port()));
    let label = |name: &str| inherited.labels.get(name).cloned();
    Some(KernelState {
        kernel: inherited.kernel,
        phase: Phase::Running,
        generation: 1,
        container_id: Some(inherited.container_id.clone()),
        image: inherited.image.clone(),
        runtime_type: label("ai.backend.runtime-type").unwrap_or_else(|| "python".to_owned()),
        runtime_path: label("ai.backend.runtime-path"),
        slots: slots(&left.record),
        grant: Grant {
            share: share(inherited, &left.record),
            ports: ports.collect(),
            index: 0,
        },
        devices: Default::default(),
        terminal_ports: terminal.map(|(input, output)| (input.port(), output.port())),
        service_commands: plan::service_commands(&inherited.labels),
        service_ports,
        // What there is was made by the other agent, and goes with the folders.
        memory_scratch: None,
        idle_timeout: left.record.idle_timeout,
        environ: left.environ,
        folders: left
            .record
            .mounts
            .iter()
            .filter_map(|mount| folder(mount))
            .collect(),
        runner,
    })
}

/// Makes the record of a kernel that is taken over. Blocking.
///
/// # Errors
/// When the disk does not take it; the kernel is as it was then.
pub(crate) fn take_over(scratch: &Path, state: &KernelState) -> io::Result<()> {
    let run = fs::DirBuilder::new().mode(0o700).create(scratch.join("run"));
    match run {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Whether something runs at this moment is only known to whom it runs for.
    note_active_run(scratch, Some(&RunId(UNNAMED.to_owned())));
    state.write(scratch)
}

fn slots(record: &ResourceRecord) -> ResourceSlot {
    let stored = record
        .slots
        .iter()
        .map(|(name, amount)| (name.clone(), Value::from(amount.as_str())));
    let (slots, skipped) = ResourceSlot::from_stored(&Value::Object(stored.collect()));
    if !skipped.is_empty() {
        tracing::warn!(?skipped, "amounts of a kernel of another agent cannot be read");
    }
    slots
}

/// What the kernel holds. The engine knows the limits that it enforces; only the files know units and devices.
fn share(inherited: &Inherited, record: &ResourceRecord) -> Share {
    let mut share = Share {
        cpu: inherited.cpu_set.iter().map(|core| (*core, 0)).collect(),
        mem: inherited.memory,
        devices: BTreeMap::new(),
    };
    for (slot, parts) in &record.shares {
        for (device, amount) in parts {
            let is_read = match slot.as_str() {
                "cpu" => device.parse().ok().zip(whole(amount)).map(|(core, units)| {
                    share.cpu.insert(core, units);
                }),
                "mem" if share.mem > 0 => Some(()),
                "mem" => bytes(amount).map(|bytes| share.mem += bytes),
                _ => device
                    .parse()
                    .ok()
                    .zip(thousandths(amount))
                    .map(|(number, amount)| {
                        share
                            .devices
                            .entry(slot.clone())
                            .or_default()
                            .insert(number, amount);
                    }),
            };
            if is_read.is_none() {
                tracing::warn!(kernel.id = %inherited.kernel, slot, device, amount, "a share of a kernel of another agent cannot be read");
            }
        }
    }
    share
}

fn thousandths(amount: &str) -> Option<Thousandths> {
    Thousandths::of(SlotValue::parse(amount, SlotUnit::Count).ok()?)
}

fn whole(amount: &str) -> Option<u64> {
    Some(thousandths(amount)?.0 / crate::resource::accelerator::WHOLE)
}

fn bytes(amount: &str) -> Option<u64> {
    match BinarySize::parse(amount).ok()? {
        BinarySize::Bytes(bytes) => u64::try_from(bytes).ok(),
        BinarySize::Infinity => None,
    }
}

/// `<host>:<kernel>:<permission>`; what is not right below the work folder is no folder of a user.
fn folder(mount: &str) -> Option<BoundFolder> {
    let (rest, permission) = mount.rsplit_once(':')?;
    let (host, target) = rest.rsplit_once(':')?;
    let name = target.strip_prefix("/home/work/")?.trim_end_matches('/');
    let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    is_plain.then(|| BoundFolder {
        name: name.to_owned(),
        host: PathBuf::from(host),
        writable: permission != "ro",
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// As recorded of the original (6.9), with a device.
    const RESOURCE: &str = "CID=9368529c75f88afe\nSCRATCH_SIZE=0m\n\
        MOUNTS=/mnt/local/00112233:/home/work/data:rw,/mnt/local/44:/home/work/books:ro,deeplearning-samples:/home/work/a/b:ro\n\
        SLOTS={\"cpu\": \"3\", \"mem\": \"1610612736\", \"cuda.shares\": \"0.5\"}\nIDLE_TIMEOUT=3600\n\
        CPU_SHARES=0:2,1:1\nMEM_SHARES=root:1.5g\nCUDA.SHARES_SHARES=0:0.5\nCUDA_MEMORY_LIMITS=x\n";

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn inherited(ports: &[(u16, u16)]) -> Inherited {
        let id = "00112233-4455-6677-8899-aabbccddeeff".parse().expect("an id");
        let labels = [
            ("ai.backend.service-ports", "jupyter:http:8081,gone:tcp:9000"),
            ("ai.backend.runtime-path", "/usr/bin/python3"),
        ];
        Inherited {
            kernel: bai_model::KernelId(id),
            container_id: "9368529c75f88afe".to_owned(),
            image: "sha256:0".to_owned(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ports: ports
                .iter()
                .map(|(inside, outside)| (*inside, address(*outside)))
                .collect(),
            cpu_set: vec![0, 1],
            memory: 0,
        }
    }

    fn left(resource: &str) -> Left {
        Left {
            record: ResourceRecord::parse(resource).0,
            environ: BTreeMap::new(),
        }
    }

    #[test]
    fn a_kernel_is_rebuilt_from_what_the_original_has_left() {
        let ports = [(2001, 30003), (2000, 30009), (8081, 30001)];
        let state = state_of(&inherited(&ports), left(RESOURCE)).expect("reachable");
        let (input, output) = (address(30009), address(30003));
        assert_eq!(state.runner, Runner::Published { input, output });
        assert_eq!(state.grant.ports, [30009, 30003, 30001]);
        let created = state.created(None);
        assert_eq!((created.repl_in_port, created.repl_out_port), (30009, 30003));
        assert_eq!((created.stdin_port, created.stdout_port), (0, 0));
        let services: Vec<_> = state
            .service_ports
            .iter()
            .map(|port| (port.name.as_str(), port.host_port))
            .collect();
        assert_eq!(services, [("jupyter", 30001)]);
        assert_eq!(state.grant.share.cpu, BTreeMap::from([(0, 2), (1, 1)]));
        assert_eq!(state.grant.share.mem, 1_610_612_736);
        assert_eq!(
            state.grant.share.devices["cuda.shares"],
            BTreeMap::from([(0, Thousandths(500))])
        );
        assert_eq!(state.slots.amount("cpu"), SlotValue::from(3));
        assert_eq!(state.idle_timeout, 3600);
        let folders: Vec<_> = state
            .folders
            .iter()
            .map(|folder| (folder.name.as_str(), folder.writable))
            .collect();
        assert_eq!(folders, [("data", true), ("books", false)]);
        assert_eq!(state.runtime_path.as_deref(), Some("/usr/bin/python3"));
    }

    #[test]
    fn terminals_have_their_ports_where_the_original_gives_them() {
        let ports = [(2000, 30000), (2001, 30001), (2002, 30002), (2003, 30003)];
        let state = state_of(&inherited(&ports), left(RESOURCE)).expect("reachable");
        assert_eq!(state.terminal_ports, Some((30002, 30003)));
        assert_eq!(state.grant.ports, [30000, 30001, 30002, 30003]);
    }

    #[test]
    fn without_the_files_the_container_says_what_it_has() {
        let container = Inherited {
            memory: 256 << 20,
            ..inherited(&[(2000, 30000), (2001, 30001)])
        };
        let state = state_of(&container, left("")).expect("reachable");
        assert_eq!(state.grant.share.mem, 256 << 20);
        assert_eq!(state.grant.share.cpu, BTreeMap::from([(0, 0), (1, 0)]));
        assert_eq!(state.idle_timeout, 600);
    }

    #[test]
    fn a_container_without_the_runners_ports_is_none_of_the_original() {
        assert_eq!(state_of(&inherited(&[(2000, 30000)]), left(RESOURCE)), None);
    }

    #[test]
    fn a_record_survives_and_one_of_before_is_of_an_own_runner() {
        let scratch = tempfile::tempdir().expect("a folder");
        let ports = [(2000, 30000), (2001, 30001)];
        let state = state_of(&inherited(&ports), left(RESOURCE)).expect("reachable");
        take_over(scratch.path(), &state).expect("written");
        assert_eq!(KernelState::read(scratch.path()), Some(state.clone()));
        let mut old = serde_json::to_value(&state).expect("JSON");
        old.as_object_mut().expect("an object").remove("runner");
        let old: KernelState = serde_json::from_value(old).expect("readable");
        assert_eq!(old.runner, Runner::Own);
    }
}
