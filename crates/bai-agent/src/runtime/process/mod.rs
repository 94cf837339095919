//! The process runtime: a kernel is a sandbox made of Linux namespaces, built and entered by `bai-runner sandbox`.
//!
//! Isolation against accidents and curiosity, not a boundary between tenants: see `docs/adr/0005-process-runtime.md`.
//!
//! Invariants: a kernel's record (`<scratch>/run/process.json`) is written before its session starts, so that no
//! agent that is killed at any moment loses a kernel; a kernel is only ever addressed by a container id that cannot
//! mean another process; [`Runtime::kill`] returns when every process and every cgroup of the kernel is gone.
//!
//! Not here: how the sandbox is built (`bai-runner`), allocation and files (the agent).

mod binds;
pub(super) mod cgroup;
mod handle;
mod launch;
mod record;
pub(super) mod stats;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::KernelId;
use bai_proto::descriptor::Descriptor;
use bai_proto::sandbox::{Bind, Limits, Network, Refusal, SandboxReport, SandboxSpec};
use tokio::net::UnixStream;

use self::cgroup::{Cgroups, Groups, Wanted};
use self::handle::{Ending, Handle};
use self::record::Record;
use super::{KernelSpec, RunnerStream, Runtime, RuntimeError, Sample, Started, descriptor, owner, socket};

/// After this long a process that was killed is stuck in the kernel, typically on a dead network file system.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// The exit code that the session's first process passes on for a runner that got SIGKILL.
const KILLED: i32 = 128 + libc::SIGKILL;

/// `work` in the user namespace of a session.
const SESSION_UID: u32 = 1000;

/// How the process runtime is to behave on this agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// End all kernels with this process (an ephemeral stack) instead of leaving them for the next agent.
    pub dies_with_agent: bool,
    pub network: Network,
    /// As root, kernel `n` runs as host user and group `uid_base + n`: kernels cannot touch each other's files, and
    /// limits per user are limits per kernel.
    pub uid_base: u32,
    /// Open files of each process and processes of each kernel.
    pub open_files: u64,
    pub processes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dies_with_agent: false,
            network: Network::Isolated,
            uid_base: 600_100_000,
            open_files: 65_536,
            processes: 1024,
        }
    }
}

/// Runs kernels as sandboxes on this machine.
#[derive(Debug)]
pub struct ProcessRuntime {
    runner: PathBuf,
    options: Options,
    cgroups: Cgroups,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    refusals: Vec<Refusal>,
    /// Open while the kernel may live.
    leashes: BTreeMap<KernelId, UnixStream>,
}

impl ProcessRuntime {
    /// A runtime that starts kernels with the program `runner`. Removes cgroups of kernels that are gone.
    pub fn new(runner: PathBuf, options: Options) -> Self {
        let cgroups = Cgroups::detect();
        cgroups.remove_orphans();
        let runtime = Self {
            runner,
            options,
            cgroups,
            state: Mutex::default(),
        };
        runtime.note(&runtime.cgroups.refusals);
        runtime
    }

    /// Builds a sandbox without a session and says what this machine grants. A reason why there is no sandbox at all
    /// is the error.
    pub async fn probe(&self) -> Result<SandboxReport, RuntimeError> {
        let dir = std::env::temp_dir().join(format!("bai-probe-{}", std::process::id()));
        let spec = KernelSpec {
            runtime_type: "shell".to_owned(),
            ..KernelSpec::unknown(KernelId(uuid::Uuid::nil()), dir.clone())
        };
        let outcome = async {
            for name in ["work", "config", "run"] {
                tokio::fs::create_dir_all(dir.join(name)).await?;
            }
            let launched = launch::launch(&self.runner, &self.describe(&spec, &Groups::default())?).await?;
            let mut report = launched.report.clone();
            let first = handle::name(report.pid)
                .map(|name| Handle::open(&name))
                .transpose()?
                .flatten();
            // Not told to go, it goes away.
            drop(launched);
            if let Some(first) = first {
                first.ended().await?;
            }
            self.note(&report.refused);
            report.refused = self.refusals();
            Ok(report)
        };
        let outcome = outcome.await;
        let _ = tokio::fs::remove_dir_all(&dir).await;
        outcome
    }

    /// Remembers refusals and warns of each protection once.
    fn note(&self, refusals: &[Refusal]) {
        let mut state = self.state();
        for refusal in refusals {
            if state
                .refusals
                .iter()
                .all(|known| known.protection != refusal.protection)
            {
                tracing::warn!(
                    protection = refusal.protection,
                    reason = refusal.reason,
                    "this machine refuses a protection of sessions"
                );
                state.refusals.push(refusal.clone());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox of a kernel.
    fn describe(&self, spec: &KernelSpec, groups: &Groups) -> Result<SandboxSpec, RuntimeError> {
        let plain = |path: &Path| match path.to_str() {
            Some(path) => Ok(path.to_owned()),
            None => Err(RuntimeError::Start(format!(
                "the path {} is not UTF-8",
                path.display()
            ))),
        };
        let mut binds = Vec::new();
        for path in spec
            .runtime_path
            .iter()
            .flat_map(|path| binds::of_runtime(path.as_ref()))
        {
            binds.push(Bind {
                source: plain(&path)?,
                target: plain(&path)?,
                writable: false,
            });
        }
        for (source, target, writable) in &spec.binds {
            binds.push(Bind {
                source: plain(source)?,
                target: target.clone(),
                writable: *writable,
            });
        }
        let (host_uid, host_gid) = owner::of_kernel(self.options.uid_base, spec.index);
        let cgroups = groups
            .dirs
            .iter()
            .map(|dir| plain(dir))
            .collect::<Result<_, _>>()?;
        let memory = Some(spec.memory).filter(|memory| *memory > 0);
        Ok(SandboxSpec {
            kernel_id: spec.kernel.to_string(),
            hostname: "kernel".to_owned(),
            work_dir: plain(&spec.scratch.join("work"))?,
            config_dir: plain(&spec.scratch.join("config"))?,
            socket_dir: plain(&run_dir(spec))?,
            binds,
            host_uid,
            host_gid,
            cgroups,
            environ: spec.environ.clone(),
            limits: Limits {
                memory: memory.filter(|_| !groups.limits_memory),
                open_files: self.options.open_files,
                processes: Some(self.options.processes),
                file_size: None,
                tmp_size: memory.map(|memory| memory / 2),
                cpu_set: spec.cpu_set.clone(),
            },
            network: self.options.network,
            runtime_type: spec.runtime_type.clone(),
            runtime_path: spec.runtime_path.clone(),
            dies_with_agent: self.options.dies_with_agent,
        })
    }

    async fn start_in(&self, spec: &KernelSpec, groups: &Groups) -> Result<Started, RuntimeError> {
        let sandbox = self.describe(spec, groups)?;
        owner::give(spec.scratch.join("work"), (sandbox.host_uid, sandbox.host_gid)).await?;
        let launched = launch::launch(&self.runner, &sandbox).await?;
        self.note(&launched.report.refused);
        let pid = launched.report.pid;
        let Some(container_id) = handle::name(pid) else {
            Handle::reap_child(pid).await?;
            return Err(RuntimeError::Start(
                "the sandbox ended before its session began".to_owned(),
            ));
        };
        let record = Record {
            container_id: container_id.clone(),
            cgroups: groups.dirs.clone(),
        };
        let outcome = match record.write(&run_dir(spec)) {
            Ok(()) => launched.go().await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(leash) if self.options.dies_with_agent => {
                drop(self.state().leashes.insert(spec.kernel, leash))
            }
            Ok(_) => {}
            Err(error) => {
                self.end(&container_id).await?;
                return Err(error);
            }
        }
        Ok(Started { container_id })
    }

    /// Kills a kernel's first process, hence all, and waits until they are gone.
    async fn end(&self, container_id: &str) -> Result<(), RuntimeError> {
        let Some(handle) = Handle::open(container_id)? else {
            return Ok(());
        };
        handle.kill()?;
        let gone = tokio::time::timeout(KILL_DEADLINE, handle.ended()).await;
        gone.map_err(std::io::Error::from)
            .flatten()
            .map(drop)
            .map_err(RuntimeError::from)
    }

    /// Gives back what a kernel without processes still holds.
    async fn forget(&self, spec: &KernelSpec, record: &Record) -> Result<(), RuntimeError> {
        {
            let mut state = self.state();
            state.leashes.remove(&spec.kernel);
        }
        record.groups().remove().await?;
        Record::remove(&run_dir(spec));
        Ok(())
    }
}

fn run_dir(spec: &KernelSpec) -> PathBuf {
    spec.scratch.join("run")
}

#[async_trait]
impl Runtime for ProcessRuntime {
    /// Not cancel-safe: a caller that goes away in between leaves empty cgroups until the agent starts again.
    async fn start(&self, spec: &KernelSpec) -> Result<Started, RuntimeError> {
        let wanted = Wanted {
            memory: spec.memory,
            cpus: spec.cpu_set.clone(),
            processes: self.options.processes,
        };
        let made = self.cgroups.create(spec.kernel, &wanted);
        let (groups, refusals) =
            made.map_err(|error| RuntimeError::Start(format!("cannot make the kernel's cgroups: {error}")))?;
        self.note(&refusals);
        let outcome = self.start_in(spec, &groups).await;
        if outcome.is_err() {
            groups.remove().await?;
            Record::remove(&run_dir(spec));
        }
        outcome
    }

    async fn find(&self, spec: &KernelSpec) -> Option<Started> {
        let record = Record::read(&run_dir(spec))?;
        Handle::open_living(&record.container_id).ok()??;
        Some(Started {
            container_id: record.container_id,
        })
    }

    async fn adopt(&self, _spec: &KernelSpec, container_id: &str) -> Result<Option<Started>, RuntimeError> {
        let living = Handle::open_living(container_id)?;
        Ok(living.map(|_| Started {
            container_id: container_id.to_owned(),
        }))
    }

    async fn connect(&self, spec: &KernelSpec) -> Result<Box<dyn RunnerStream>, RuntimeError> {
        Ok(Box::new(socket::connect(&run_dir(spec)).await?))
    }

    async fn descriptor(&self, spec: &KernelSpec, wanted: Descriptor) -> std::io::Result<OwnedFd> {
        descriptor::obtain(run_dir(spec), wanted).await
    }

    async fn wait(&self, spec: &KernelSpec, container_id: &str) -> String {
        let ending = match Handle::open(container_id) {
            Ok(Some(handle)) => handle.ended().await.unwrap_or(Ending::Unknown),
            _ => Ending::Unknown,
        };
        let record = Record::read_for(&run_dir(spec), container_id);
        let starved = record.is_some_and(|record| record.groups().ran_out_of_memory());
        let killed = matches!(ending, Ending::Unknown | Ending::Exited(KILLED));
        if starved && killed {
            "out-of-memory"
        } else {
            "self-terminated"
        }
        .to_owned()
    }

    async fn kill(&self, spec: &KernelSpec, container_id: &str) -> Result<(), RuntimeError> {
        let record = Record::read(&run_dir(spec)).unwrap_or_default();
        self.end(container_id).await?;
        // A start that was interrupted before the agent learned its name.
        self.end(&record.container_id).await?;
        self.forget(spec, &record).await
    }

    async fn measure(&self, spec: &KernelSpec, container_id: &str) -> Option<Sample> {
        let pid = Handle::open(container_id).ok()??.pid;
        let groups = Record::read_for(&run_dir(spec), container_id)?.groups();
        let measured = tokio::task::spawn_blocking(move || stats::measure(pid, &groups));
        measured.await.ok()
    }

    fn uid(&self) -> u32 {
        SESSION_UID
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.state().refusals.clone()
    }
}
