//! The Docker runtime: a kernel is a container of any image, with `bai-runner` mounted into it as its first process.
//!
//! Why what is allowed is allowed, and how the runner's socket is kept from the session: see
//! `docs/adr/0012-docker-runtime.md`.
//!
//! Invariants: the engine's containers are the only record: a container carries its owner, kernel and folder as labels,
//! so that no agent that is killed at any moment loses one; a kernel is addressed by its container's id, which is never
//! used again; [`Runtime::kill`] returns when the container is gone; every call to the engine has a deadline.
//!
//! Not here: what images are there ([`Images`]), allocation and files (the agent).

mod container;
mod engine;
mod images;
mod original;
mod stats;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_proto::descriptor::Descriptor;
use bai_proto::runner::{Frame, Request};
use bai_proto::sandbox::Refusal;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use self::container::{KERNEL_LABEL, OWNER_LABEL, SCRATCH_LABEL, User};
pub use self::engine::{Engine, EngineError};
pub use self::images::{ImageError, Images, Local, Pull};
use super::{
    Inherited, KernelSpec, Runner, RunnerStream, Runtime, RuntimeError, Sample, Started, descriptor, owner,
    socket,
};

/// The runner of a container that has started takes milliseconds; this is for machines that are stuck.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// Pauses between two attempts to reach a runner that is starting.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Pause before an engine that is lost is asked again.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);
/// After this long, what was killed is stuck in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(40);
/// The exit code of a process that got SIGKILL, as first processes pass it on.
const KILLED: i64 = 128 + 9;
/// Bytes of a container's log in the message of a failed start.
const MAX_COMPLAINT: usize = 2000;

/// How the Docker runtime is to behave on this agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// The static `bai-runner` executable on this host.
    pub runner: PathBuf,
    /// What marks this agent's containers, and no other's on the same engine: the path of its data folder.
    pub owner: String,
    /// User and group that sessions are when the agent is root (19.06: `container.kernel-uid`); otherwise they are the
    /// agent's own, because the files must be.
    pub user: (u32, u32),
    /// The engine's network for containers (`bridge`, `none`, a name); `None` is the engine's default.
    pub network: Option<String>,
    /// Processes of each kernel.
    pub processes: u32,
}

impl Options {
    /// Options with the usual values for what is not an argument.
    pub fn new(runner: PathBuf, owner: String) -> Self {
        Self {
            runner,
            owner,
            user: (9001, 9001),
            network: None,
            processes: 1024,
        }
    }
}

/// Runs kernels as containers of an engine on this machine.
#[derive(Debug)]
pub struct DockerRuntime {
    engine: Engine,
    options: Options,
    images: Arc<Images>,
}

impl DockerRuntime {
    /// A runtime on an engine. Removes containers of this owner whose kernels' folders are gone. `kept` is the file that
    /// remembers what was found out about images.
    ///
    /// # Errors
    /// When the engine stops answering.
    pub async fn open(engine: Engine, options: Options, kept: PathBuf) -> Result<Self, EngineError> {
        for refusal in &engine.lacks {
            tracing::warn!(
                protection = refusal.protection,
                reason = refusal.reason,
                "the container engine lacks a protection of sessions"
            );
        }
        let runtime = Self {
            images: Arc::new(Images::open(engine.clone(), options.clone(), kept).await),
            engine,
            options,
        };
        runtime.remove_orphans().await?;
        Ok(runtime)
    }

    /// The images of the engine.
    pub fn images(&self) -> Arc<Images> {
        Arc::clone(&self.images)
    }

    /// The engine that this runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn user(&self) -> User {
        match self.is_root() {
            true => User {
                uid: self.options.user.0,
                gid: self.options.user.1,
            },
            false => User {
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
            },
        }
    }

    fn is_root(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }

    /// Containers of this owner, with all the labels given, whatever their state.
    async fn list(&self, more: Option<String>) -> Result<Vec<(String, Option<PathBuf>)>, EngineError> {
        let mut labels = vec![format!("{OWNER_LABEL}={}", self.options.owner)];
        labels.extend(more);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&std::collections::HashMap::from([("label".to_owned(), labels)]))
            .build();
        let call = self.engine.api.list_containers(Some(options));
        let found = self.engine.ask("list containers", call).await?;
        let described = found.into_iter().filter_map(|container| {
            let scratch = container.labels.unwrap_or_default().remove(SCRATCH_LABEL);
            Some((container.id?, scratch.map(PathBuf::from)))
        });
        Ok(described.collect())
    }

    /// A container whose folder is gone belongs to a kernel that nobody will ask for again.
    async fn remove_orphans(&self) -> Result<(), EngineError> {
        for (id, scratch) in self.list(None).await? {
            let is_orphan = scratch.is_none_or(|scratch| !scratch.exists());
            if is_orphan {
                tracing::info!(container = id, "removing a container that no kernel has");
                remove(&self.engine, &id).await?;
            }
        }
        Ok(())
    }

    async fn create(&self, spec: &KernelSpec) -> Result<String, RuntimeError> {
        let user = self.user();
        let body = container::describe(spec, &self.options, user, self.is_root())?;
        owner::give(spec.scratch.join("work"), (user.uid, user.gid)).await?;
        let name = container::name(spec);
        match create(&self.engine, Some(&name), body.clone()).await {
            // Of a start that nobody remembers; another agent's is left alone.
            Err(error) if error.is_conflict() => {
                for (id, _) in self.list(Some(format!("{KERNEL_LABEL}={}", spec.kernel))).await? {
                    remove(&self.engine, &id).await?;
                }
                Ok(create(&self.engine, Some(&name), body).await?)
            }
            created => Ok(created?),
        }
    }

    /// Starts a container and waits until its runner answers.
    async fn run(&self, spec: &KernelSpec, id: &str) -> Result<(), RuntimeError> {
        let call = self.engine.api.start_container(id, None::<StartContainerOptions>);
        self.engine.have("start a container", call).await?;
        let run_dir = spec.scratch.join("run");
        let ready = async {
            let mut pause = FIRST_PAUSE;
            while !answers(&run_dir).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(READY_DEADLINE, ready) => match ready {
                Ok(()) => Ok(()),
                Err(_) => Err(RuntimeError::Start(format!(
                    "the runner in the container does not answer; it says: {}",
                    complaint(&self.engine, id).await
                ))),
            },
            state = self.ended(id) => Err(RuntimeError::Start(format!(
                "the container ended at once with exit code {}; it says: {}",
                state.exit_code.unwrap_or_default(),
                complaint(&self.engine, id).await
            ))),
        }
    }

    /// Resolves when a container does not run, however often the engine goes away meanwhile. A container that is gone has
    /// no state.
    async fn ended(&self, id: &str) -> ContainerState {
        loop {
            let options = WaitContainerOptionsBuilder::new()
                .condition("not-running")
                .build();
            let mut waiting = self.engine.api.wait_container(id, Some(options)).boxed();
            // A non-zero exit code is an error to the library; how it ended is in the state in any case.
            _ = waiting.next().await;
            match inspect(&self.engine, id).await {
                Ok(Some(found)) => {
                    let state = found.state.unwrap_or_default();
                    if !state.running.unwrap_or_default() {
                        return state;
                    }
                }
                Ok(None) => return ContainerState::default(),
                Err(error) => {
                    tracing::debug!(container = id, %error, "the engine does not tell about a container; asking again");
                }
            }
            tokio::time::sleep(ENGINE_PAUSE).await;
        }
    }
}

/// Whether the runner says how it is.
async fn answers(run_dir: &Path) -> bool {
    let ask = async {
        let mut stream = socket::connect(run_dir).await.ok()?;
        stream
            .write_all(&Request::Status.to_frame().encode())
            .await
            .ok()?;
        Frame::read_async(&mut stream).await.ok()?
    };
    ask.await.is_some()
}

async fn create(
    engine: &Engine,
    name: Option<&str>,
    body: ContainerCreateBody,
) -> Result<String, EngineError> {
    let options = name.map(|name| CreateContainerOptionsBuilder::new().name(name).build());
    let what = format!(
        "create a container of the image {}",
        body.image.as_deref().unwrap_or_default()
    );
    let call = engine.api.create_container(options, body);
    Ok(engine.have(&what, call).await?.id)
}

/// The container, if there is one.
async fn inspect(engine: &Engine, id: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
    match engine
        .ask("describe a container", engine.api.inspect_container(id, None))
        .await
    {
        Err(error) if error.is_unknown() => Ok(None),
        found => found.map(Some),
    }
}

/// Kills and removes a container and its anonymous volumes; returns when it is gone. Nothing to remove is success.
async fn remove(engine: &Engine, id: &str) -> Result<(), EngineError> {
    let options = || RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine
        .have(
            "remove a container",
            engine.api.remove_container(id, Some(options())),
        )
        .await
    {
        Err(error) if error.is_unknown() => Ok(()),
        // Somebody else removes it already.
        Err(error) if error.is_conflict() => {
            while inspect(engine, id).await?.is_some() {
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
            Ok(())
        }
        removed => removed,
    }
}

/// What a container has printed, as far as it fits into a message.
async fn complaint(engine: &Engine, id: &str) -> String {
    let said = output(engine, id).await.unwrap_or_else(|error| error.to_string());
    let said = said.trim();
    match said.char_indices().nth(MAX_COMPLAINT) {
        _ if said.is_empty() => "nothing".to_owned(),
        Some((end, _)) => said[..end].to_owned(),
        None => said.to_owned(),
    }
}

async fn output(engine: &Engine, id: &str) -> Result<String, EngineError> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let lines = engine.api.logs(id, Some(options)).try_collect::<Vec<_>>();
    let lines = engine.ask("give a container's log", lines).await?;
    Ok(lines.iter().map(ToString::to_string).collect())
}

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        Self::Start(error.to_string())
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    /// Not cancel-safe: a caller that goes away in between leaves a container, which [`Runtime::find`] finds.
    async fn start(&self, spec: &KernelSpec) -> Result<Started, RuntimeError> {
        let stale = spec.scratch.join("run").join(socket::SOCKET);
        match tokio::fs::remove_file(stale).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let container_id = self.create(spec).await?;
        if let Err(error) = self.run(spec, &container_id).await {
            remove(&self.engine, &container_id).await?;
            return Err(error);
        }
        Ok(Started { container_id })
    }

    async fn find(&self, spec: &KernelSpec) -> Option<Started> {
        let found = self.list(Some(format!("{KERNEL_LABEL}={}", spec.kernel))).await;
        let found = found.inspect_err(|error| {
            tracing::error!(kernel.id = %spec.kernel, %error, "cannot look for a kernel's container; the next start of the agent does");
        });
        let (container_id, _) = found.ok()?.into_iter().next()?;
        Some(Started { container_id })
    }

    async fn adopt(&self, spec: &KernelSpec, container_id: &str) -> Result<Option<Started>, RuntimeError> {
        if container_id.is_empty() {
            return Ok(None);
        }
        let Some(found) = inspect(&self.engine, container_id).await? else {
            return Ok(None);
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let is_ours = match spec.runner {
            Runner::Own => {
                labels.get(OWNER_LABEL) == Some(&self.options.owner)
                    && labels.get(KERNEL_LABEL) == Some(&spec.kernel.to_string())
            }
            Runner::Published { .. } => {
                let name = found.name.as_deref().unwrap_or_default();
                !labels.contains_key(OWNER_LABEL) && original::kernel_of(name) == Some(spec.kernel)
            }
        };
        let is_running = found.state.and_then(|state| state.running).unwrap_or_default();
        let whole = found.id.unwrap_or_default();
        Ok((is_ours && is_running && whole == container_id).then_some(Started { container_id: whole }))
    }

    async fn connect(&self, spec: &KernelSpec) -> Result<Box<dyn RunnerStream>, RuntimeError> {
        Ok(Box::new(socket::connect(&spec.scratch.join("run")).await?))
    }

    async fn descriptor(&self, spec: &KernelSpec, wanted: Descriptor) -> std::io::Result<OwnedFd> {
        descriptor::obtain(spec.scratch.join("run"), wanted).await
    }

    async fn wait(&self, _spec: &KernelSpec, container_id: &str) -> String {
        let state = self.ended(container_id).await;
        // The engine remembers any process that wanted too much; the session ended of it if its runner was killed.
        let starved = state.oom_killed.unwrap_or_default() && state.exit_code == Some(KILLED);
        match starved {
            true => "out-of-memory",
            false => "self-terminated",
        }
        .to_owned()
    }

    async fn inherited(&self, scratch_root: &Path) -> Result<Vec<Inherited>, RuntimeError> {
        Ok(original::find(&self.engine, scratch_root).await?)
    }

    async fn printed(&self, container_id: &str) -> Result<String, RuntimeError> {
        Ok(original::printed(&self.engine, container_id).await?)
    }

    async fn kill(&self, spec: &KernelSpec, container_id: &str) -> Result<(), RuntimeError> {
        if !container_id.is_empty() {
            let removing = async {
                remove(&self.engine, container_id).await?;
                if !spec.runner.is_own() {
                    // It never ran; the other one had its programs from its volume.
                    remove(&self.engine, &original::companion_of(spec.kernel)).await?;
                }
                Ok::<(), EngineError>(())
            };
            let gone = tokio::time::timeout(KILL_DEADLINE, removing).await;
            gone.map_err(|_| {
                RuntimeError::Start("the engine does not get rid of the container".to_owned())
            })??;
        }
        Ok(())
    }

    async fn measure(&self, _spec: &KernelSpec, container_id: &str) -> Option<Sample> {
        stats::measure(&self.engine, container_id).await
    }

    fn uid(&self) -> u32 {
        self.user().uid
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.engine.lacks.clone()
    }
}
