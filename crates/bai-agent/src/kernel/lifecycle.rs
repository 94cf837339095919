//! How kernels come into being, are replaced, end and are found again (`agent-protocol.md` 7.7-7.9).
//!
//! Invariants: every function here that changes a kernel holds its turn; the state on disk is written before what it
//! says is done; a kernel gives back what it holds when, and only when, none of its processes is left.
//!
//! Not here: the tasks in which all this runs (`rpc`).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bai_model::{KernelId, ResourceSlot};
use bai_proto::agent::{AgentError, KernelConfig, KernelCreated};
use bai_proto::event::AgentEvent;
use serde_json::Value;

use super::listen::{Listeners, OWN_PORTS};
use super::registry::{Kernel, Life};
use super::state::{FILE, KernelState, Phase, note_active_run, read_active_run};
use super::{config_dir, inherit, logs, memory, plan, trash};
use crate::agent::StartError;
use crate::error;
use crate::host::Host;
use crate::resource::{Grant, Refused};
use crate::runtime::{Inherited, KernelSpec, Runner, RuntimeError};
use crate::tasks::blocking;

/// In a kernel's folder, what its session sees as `/home/work`.
const WORK: &str = "work";
const START_DEADLINE: Duration = Duration::from_secs(60);
const ADOPT_DEADLINE: Duration = Duration::from_secs(10);
/// Containers of another agent are looked at one after the other.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);
const KILL_DEADLINE: Duration = Duration::from_secs(45);

/// Creates a kernel, or says again how it was created.
pub(crate) async fn create(
    host: &Arc<Host>,
    id: KernelId,
    config: KernelConfig,
) -> Result<KernelCreated, AgentError> {
    let _turn = host.registry.turn(id).await;
    if let Some(kernel) = host.registry.get(id) {
        return match kernel.life() {
            Some(_) => Ok(kernel.created(host)),
            None => Err(error::runtime(format!(
                "the kernel {id} is stopped; restart or destroy it"
            ))),
        };
    }
    host.tell(AgentEvent::KernelPreparing { kernel: id }).await;
    match create_new(host, id, config).await {
        Ok(created) => {
            host.tell(AgentEvent::KernelStarted { kernel: id }).await;
            Ok(created)
        }
        Err(Failure { error, remains }) => {
            tracing::warn!(kernel.id = %id, %error, "a kernel could not be created");
            match remains {
                None => discard(host, id).await,
                // Kept, without a life, until somebody succeeds in destroying it.
                Some(state) => host
                    .registry
                    .insert(Arc::new(Kernel::new(*state, host.clock.now()))),
            }
            Err(error)
        }
    }
}

/// A kernel that did not start, with its state if something of it may be left running.
struct Failure {
    error: AgentError,
    remains: Option<Box<KernelState>>,
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self { error, remains: None }
    }
}

async fn create_new(host: &Arc<Host>, id: KernelId, config: KernelConfig) -> Result<KernelCreated, Failure> {
    let pulling = host.tell(AgentEvent::KernelPulling {
        kernel: id,
        image: config.image.canonical.clone(),
    });
    let image = host.images.obtain(&config.image, pulling).await?;
    let labels = image.labels;
    let services = plan::services(&labels)?;
    let folders = plan::folders(&config.mounts, &host.layout.mounts, &host.layout.mount_prefix)?;
    let mut grant = take(host, id, &config.resource_slots, OWN_PORTS + services.len())?;
    let mut ports = std::mem::take(&mut grant.ports);
    let listeners = Listeners::bind(host, id, &mut ports).await?;
    host.tell(AgentEvent::KernelCreating { kernel: id }).await;
    let label = |name: &str| labels.get(name).cloned();
    let devices = host.ledger().give(&grant.share);
    let mut state = KernelState {
        kernel: id,
        phase: Phase::Creating,
        generation: 1,
        container_id: None,
        image: image.reference,
        runtime_type: label("ai.backend.runtime-type").unwrap_or_else(|| "python".to_owned()),
        runtime_path: label("ai.backend.runtime-path"),
        slots: config.resource_slots.clone(),
        environ: plan::environ(
            &config,
            &labels,
            grant.share.cpu.len(),
            host.runtime.uid(),
            &devices,
        ),
        devices,
        grant,
        terminal_ports: None,
        service_commands: plan::service_commands(&labels),
        service_ports: services,
        idle_timeout: config.idle_timeout,
        folders,
        memory_scratch: host.memory_scratch,
        runner: Runner::Own,
    };
    state.set_ports(ports);
    let scratch = host.layout.scratch_of(id);
    let prepared = state.clone();
    disk(move || prepare(&scratch, &prepared)).await?;
    let life = start(host, &mut state, listeners).await?;
    let kernel = Kernel::new(state, host.clock.now());
    kernel.begin_life(Arc::clone(&life));
    let kernel = Arc::new(kernel);
    host.registry.insert(Arc::clone(&kernel));
    watch(host, id, &life);
    Ok(kernel.created(host))
}

fn take(host: &Host, id: KernelId, slots: &ResourceSlot, ports: usize) -> Result<Grant, AgentError> {
    host.ledger()
        .take(id, slots, ports)
        .map_err(|refused| match refused {
            Refused::Insufficient(shortage) => error::insufficient(&shortage),
            Refused::NoPorts => error::no_ports(),
        })
}

/// Makes the folders of a kernel, without anything of a failed attempt.
fn prepare(scratch: &Path, state: &KernelState) -> io::Result<()> {
    memory::unmount(&scratch.join(WORK))?;
    match fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The session's user has to get through, nobody has to look around.
    fs::DirBuilder::new().mode(0o711).create(scratch)?;
    let make = |name: &str, mode| fs::DirBuilder::new().mode(mode).create(scratch.join(name));
    make(WORK, 0o755)?;
    if let Some(size) = state.memory_scratch {
        memory::mount(&scratch.join(WORK), size)?;
    }
    for (name, mode) in [("work/.jupyter", 0o755), ("config", 0o755), ("run", 0o700)] {
        make(name, mode)?;
    }
    config_dir::write(&scratch.join("config"), state)?;
    state.write(scratch)
}

/// Starts the processes of a kernel whose state is on disk, and writes down that they run.
async fn start(
    host: &Arc<Host>,
    state: &mut KernelState,
    listeners: Listeners,
) -> Result<Arc<Life>, Failure> {
    let scratch = host.layout.scratch_of(state.kernel);
    let spec = state.spec(&scratch);
    let keep = |state: &KernelState| {
        let remains = Some(Box::new(state.clone()));
        move |error| Failure { error, remains }
    };
    let started = tokio::time::timeout(START_DEADLINE, host.runtime.start(&spec)).await;
    let started = match started {
        Ok(Ok(started)) => started,
        Ok(Err(error)) => return Err(error::runtime(error.to_string()).into()),
        Err(_) => {
            // The start was dropped somewhere on its way.
            kill_remains(host, &spec).await.map_err(keep(state))?;
            return Err(AgentError::Timeout.into());
        }
    };
    state.container_id = Some(started.container_id.clone());
    state.phase = Phase::Running;
    let written = state.clone();
    let outcome = disk(move || {
        config_dir::write(&scratch.join("config"), &written)?;
        // Lost with the machine, it is not missed: the kernel is lost, too.
        written.write_quickly(&scratch)
    });
    if let Err(error) = outcome.await {
        kill(host, &spec, &started.container_id)
            .await
            .map_err(keep(state))?;
        return Err(error.into());
    }
    tracing::info!(kernel.id = %state.kernel, generation = state.generation, container = started.container_id, "kernel started");
    Ok(Life::begin(host, state, listeners, started.container_id, None))
}

/// Waits for the kernel to end by itself.
fn watch(host: &Arc<Host>, id: KernelId, life: &Arc<Life>) {
    let (host, life) = (Arc::clone(host), Arc::clone(life));
    let tasks = host.tasks.clone();
    tasks.spawn_until_stopped("watch kernel", async move {
        let ended = host.runtime.wait(&life.spec, &life.container_id);
        let Some(reason) = life.ended.run_until_cancelled(ended).await else {
            return;
        };
        let generation = life.generation;
        let finishing = Arc::clone(&host);
        // Once begun, the removal is finished although the agent stops.
        drop(host.tasks.spawn("remove ended kernel", async move {
            let _turn = finishing.registry.turn(id).await;
            let kernel = finishing.registry.get(id);
            let is_same =
                |kernel: &Arc<Kernel>| kernel.life().is_some_and(|life| life.generation == generation);
            if let Some(kernel) = kernel.filter(is_same)
                && let Err(error) = remove(&finishing, &kernel, &reason).await
            {
                tracing::error!(kernel.id = %id, %error, "an ended kernel cannot be removed");
            }
        }));
    });
}

/// Ends a kernel for the reason given; its last statistics. A kernel that is unknown is told to be gone.
pub(crate) async fn destroy(
    host: &Arc<Host>,
    id: KernelId,
    reason: &str,
) -> Result<Option<Value>, AgentError> {
    let _turn = host.registry.turn(id).await;
    match host.registry.get(id) {
        Some(kernel) => remove(host, &kernel, reason).await,
        None => {
            tell_unknown(host, id).await;
            Ok(None)
        }
    }
}

/// Tells that a kernel is not here, so that whoever thinks so learns better.
pub(crate) async fn tell_unknown(host: &Host, id: KernelId) {
    let reason = "self-terminated".to_owned();
    host.tell(AgentEvent::KernelTerminated {
        kernel: id,
        reason,
        generation: None,
        stats: None,
    })
    .await;
}

/// Ends a kernel and gives back what it holds. On failure it stays, so that nobody gets what its processes still use.
async fn remove(host: &Arc<Host>, kernel: &Arc<Kernel>, reason: &str) -> Result<Option<Value>, AgentError> {
    let stats = crate::stats::last_of(host, kernel).await;
    let state = kernel.state();
    let spec = state.spec(&host.layout.scratch_of(kernel.id));
    let life = kernel.end_life();
    match life
        .as_ref()
        .map(|life| &life.container_id)
        .or(state.container_id.as_ref())
    {
        Some(container_id) => kill(host, &spec, container_id).await?,
        None => kill_remains(host, &spec).await?,
    }
    discard(host, kernel.id).await;
    tracing::info!(kernel.id = %kernel.id, reason, "kernel ended");
    let reason = reason.to_owned();
    let generation = Some(state.generation);
    host.tell(AgentEvent::KernelTerminated {
        kernel: kernel.id,
        reason,
        generation,
        stats: stats.clone(),
    })
    .await;
    Ok(stats)
}

/// Replaces the processes of a kernel, keeping its files, slots and folders. Its ports are others (2.4).
pub(crate) async fn restart(
    host: &Arc<Host>,
    id: KernelId,
    config: KernelConfig,
) -> Result<KernelCreated, AgentError> {
    let _turn = host.registry.turn(id).await;
    let kernel = host.registry.get(id).ok_or_else(|| error::unknown_kernel(id))?;
    let scratch = host.layout.scratch_of(id);
    let mut state = kernel.state();
    let former = state.spec(&scratch);
    let old = state.container_id.clone();
    state.generation += 1;
    state.phase = Phase::Restarting;
    state.environ = plan::environ(
        &config,
        &config.image.labels,
        state.grant.share.cpu.len(),
        host.runtime.uid(),
        &state.devices,
    );
    let (listeners, former_ports) = other_ports(host, &mut state).await?;
    let written = state.clone();
    let dir = scratch.clone();
    disk(move || written.write(&dir)).await?;
    kernel.set_state(state.clone());
    kernel.end_life();
    host.ledger().return_ports(id, &former_ports);
    if let Some(old) = old {
        kill(host, &former, &old).await?;
    }
    // Whoever's it was, the next life is an ordinary one.
    state.runner = Runner::Own;
    let (dir, prepared) = (scratch.clone(), state.clone());
    disk(move || {
        // Memory does not outlive the machine.
        if let Some(size) = prepared.memory_scratch {
            memory::mount(&dir.join(WORK), size)?;
        }
        note_active_run(&dir, None);
        logs::remove(&dir)
    })
    .await?;
    state.container_id = None;
    // On failure the kernel stays without a life; what it holds is given back when it is destroyed.
    let started = start(host, &mut state, listeners).await;
    kernel.set_state(state);
    let life = started.map_err(|failure| failure.error)?;
    kernel.begin_life(Arc::clone(&life));
    kernel.touch(host.clock.now());
    watch(host, id, &life);
    host.tell(AgentEvent::KernelStarted { kernel: id }).await;
    Ok(kernel.created(host))
}

/// Gives a kernel that is being restarted other ports; those that it had, to be returned when nothing listens there.
/// When all ports are taken, it goes on with those that it has.
async fn other_ports(host: &Host, state: &mut KernelState) -> Result<(Listeners, Vec<u16>), AgentError> {
    let (id, former) = (state.kernel, state.grant.ports.clone());
    let more = host.ledger().add_ports(id, OWN_PORTS + state.service_ports.len());
    let Some(mut ports) = more else {
        return Ok((Listeners::default(), Vec::new()));
    };
    match Listeners::bind(host, id, &mut ports).await {
        Ok(listeners) => {
            state.set_ports(ports);
            Ok((listeners, former))
        }
        Err(error) => {
            host.ledger().return_ports(id, &ports);
            Err(error)
        }
    }
}

/// Finds the kernels of an earlier agent process again, and takes over those of an agent of 19.06.
///
/// # Errors
/// When it cannot be known which there are: nothing that may be somebody's is removed then.
pub(crate) async fn adopt_all(host: &Arc<Host>) -> Result<(), StartError> {
    let folder = host.layout.scratch.clone();
    let names = move || {
        fs::read_dir(&folder).map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
    };
    let names: io::Result<Vec<std::ffi::OsString>> = blocking(names).await.unwrap_or(Ok(Vec::new()));
    let names = names.map_err(|source| StartError::Folder {
        path: host.layout.scratch.clone(),
        source,
    })?;
    let ids: Vec<KernelId> = names
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    let looking = tokio::time::timeout(LOOK_DEADLINE, host.runtime.inherited(&host.layout.scratch));
    let inherited = looking
        .await
        .unwrap_or_else(|_| Err(RuntimeError::Start("the runtime does not answer".to_owned())))?;
    let has_record = |id: &KernelId| host.layout.scratch_of(*id).join(FILE).exists();
    let (known, unknown): (Vec<KernelId>, Vec<KernelId>) = ids.into_iter().partition(has_record);
    // What the known ones hold is nobody else's, so that they come first.
    adopt_each(host, known, &[]).await;
    adopt_each(host, unknown, &inherited).await;
    Ok(())
}

async fn adopt_each(host: &Arc<Host>, ids: Vec<KernelId>, inherited: &[Inherited]) {
    let adoptions: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let host = Arc::clone(host);
            let tasks = host.tasks.clone();
            let inherited = inherited.iter().find(|inherited| inherited.kernel == id).cloned();
            tasks.spawn("adopt kernel", async move { adopt(&host, id, inherited).await })
        })
        .collect();
    for adoption in adoptions {
        if let Err(error) = adoption.await {
            tracing::error!(%error, "adopting a kernel failed");
        }
    }
}

/// Makes a record of a kernel of an agent of 19.06. `false` if it stays as it is, and is for the next start to take.
async fn take_over(host: &Arc<Host>, inherited: Inherited) -> bool {
    let id = inherited.kernel;
    let scratch = host.layout.scratch_of(id);
    let dir = scratch.clone();
    let left = blocking(move || inherit::Left::read(&dir))
        .await
        .unwrap_or_default();
    let Some(mut state) = inherit::state_of(&inherited, left) else {
        tracing::error!(
            kernel.id = %id, container = inherited.container_id,
            "a session of a 19.06 agent has no published ports for its runner and cannot be served; end it with `docker rm -f`"
        );
        return false;
    };
    state.devices = host.ledger().give(&state.grant.share);
    host.ledger().inherit(id, &mut state.grant);
    let written = state.clone();
    if let Err(error) = disk(move || inherit::take_over(&scratch, &written)).await {
        host.ledger().release(id);
        tracing::error!(kernel.id = %id, %error, "a session of a 19.06 agent cannot be taken over; the next start tries again");
        return false;
    }
    tracing::info!(kernel.id = %id, container = inherited.container_id, "took over a session of a 19.06 agent");
    true
}

async fn adopt(host: &Arc<Host>, id: KernelId, inherited: Option<Inherited>) {
    let _turn = host.registry.turn(id).await;
    if let Some(inherited) = inherited
        && !take_over(host, inherited).await
    {
        return;
    }
    let scratch = host.layout.scratch_of(id);
    let dir = scratch.clone();
    let found = blocking(move || KernelState::read(&dir).map(|state| (state, read_active_run(&dir))))
        .await
        .flatten();
    let Some((mut state, run)) = found else {
        tracing::warn!(kernel.id = %id, "removing what is left of a kernel without a readable record");
        if inherit::is_of_original(&scratch) {
            // Its container ended while no agent was there, and is gone.
            tell_unknown(host, id).await;
        }
        // It was never told to run, unless another version wrote the record.
        return match kill_remains(host, &KernelSpec::unknown(id, scratch)).await {
            Ok(()) => discard(host, id).await,
            Err(error) => {
                tracing::error!(kernel.id = %id, %error, "it cannot be killed; the next start tries again")
            }
        };
    };
    let spec = state.spec(&scratch);
    host.ledger().restore(id, &state.grant);
    if state.phase != Phase::Running {
        let killed = match &state.container_id {
            Some(old) => kill(host, &spec, old).await.and(kill_remains(host, &spec).await),
            None => kill_remains(host, &spec).await,
        };
        if let Err(error) = killed {
            tracing::error!(kernel.id = %id, %error, "a half-made kernel cannot be killed; keeping what it holds");
            host.registry
                .insert(Arc::new(Kernel::new(state, host.clock.now())));
            return;
        }
        if state.phase == Phase::Creating {
            tracing::info!(kernel.id = %id, "removing a half-made kernel");
            return discard(host, id).await;
        }
        // Without processes until the manager restarts it (again) or destroys it.
        state.container_id = None;
        host.registry
            .insert(Arc::new(Kernel::new(state, host.clock.now())));
        return;
    }
    let container_id = state.container_id.clone().unwrap_or_default();
    let adopted = tokio::time::timeout(ADOPT_DEADLINE, host.runtime.adopt(&spec, &container_id)).await;
    let adopted =
        adopted.unwrap_or_else(|_| Err(RuntimeError::Start("the runtime does not answer".to_owned())));
    let kernel = Arc::new(Kernel::new(state.clone(), host.clock.now()));
    host.registry.insert(Arc::clone(&kernel));
    match adopted {
        Ok(Some(started)) => {
            tracing::info!(kernel.id = %id, container = started.container_id, "kernel found again");
            if state.memory_scratch.is_some() && !memory::is_mounted(&scratch.join(WORK)).unwrap_or(false) {
                tracing::warn!(
                    kernel.id = %id,
                    "its work folder in memory is not to be seen from here, so that its files cannot be listed, fetched or \
                     sent: the agent must not have mounts of its own (PrivateMounts=, PrivateTmp= of its unit)"
                );
            }
            let listeners = Listeners::bind_again(host, &state).await;
            let life = Life::begin(host, &state, listeners, started.container_id, run);
            kernel.begin_life(Arc::clone(&life));
            watch(host, id, &life);
        }
        Ok(None) => {
            if let Err(error) = remove(host, &kernel, "self-terminated").await {
                tracing::error!(kernel.id = %id, %error, "a kernel that ended while the agent was away cannot be removed");
            }
        }
        Err(error) => {
            tracing::error!(kernel.id = %id, %error, "a kernel cannot be found again; ending it");
            if let Err(error) = remove(host, &kernel, "adoption-failed").await {
                tracing::error!(kernel.id = %id, %error, "it cannot be ended either");
            }
        }
    }
}

/// Forgets a kernel that has no processes, and gives back what it holds.
async fn discard(host: &Arc<Host>, id: KernelId) {
    let (folder, thrown) = (host.layout.scratch_of(id), host.layout.trash.join(host.unique()));
    // A 19.06 agent's kernels may have another one, for their /tmp.
    let (beside, thrown_beside) = (
        folder.with_file_name(format!("{id}_tmp")),
        host.layout.trash.join(host.unique()),
    );
    let (to, to_beside) = (thrown.clone(), thrown_beside.clone());
    let forget = move || {
        for mounted in [&folder.join(WORK), &folder, &beside] {
            memory::unmount(mounted)?;
        }
        trash::throw(&beside, &to_beside)?;
        trash::throw(&folder, &to)
    };
    if let Some(Err(error)) = blocking(forget).await {
        tracing::error!(kernel.id = %id, %error, "the folder of a kernel cannot be moved away");
    }
    host.registry.remove(id);
    host.ledger().release(id);
    drop(host.tasks.spawn("remove folder", async move {
        blocking(move || {
            trash::remove(&thrown);
            trash::remove(&thrown_beside);
        })
        .await
    }));
}

/// Removes in the background what an earlier agent process left.
pub(crate) fn empty_trash(host: &Arc<Host>) {
    let trash_dir = host.layout.trash.clone();
    drop(host.tasks.spawn("empty trash", async move {
        blocking(move || trash::empty(&trash_dir)).await
    }));
}

async fn kill(host: &Host, spec: &KernelSpec, container_id: &str) -> Result<(), AgentError> {
    match tokio::time::timeout(KILL_DEADLINE, host.runtime.kill(spec, container_id)).await {
        Ok(killed) => {
            killed.map_err(|error| error::runtime(format!("cannot kill the kernel {}: {error}", spec.kernel)))
        }
        Err(_) => Err(AgentError::Timeout),
    }
}

/// Kills what a start that was interrupted may have left.
async fn kill_remains(host: &Host, spec: &KernelSpec) -> Result<(), AgentError> {
    match tokio::time::timeout(ADOPT_DEADLINE, host.runtime.find(spec)).await {
        Ok(Some(found)) => kill(host, spec, &found.container_id).await,
        Ok(None) => Ok(()),
        Err(_) => Err(AgentError::Timeout),
    }
}

async fn disk(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), AgentError> {
    let outcome = blocking(work)
        .await
        .unwrap_or_else(|| Err(io::Error::other("the work was given up")));
    outcome.map_err(|error| {
        AgentError::exception(
            "OSError",
            format!("the kernel's folder cannot be written: {error}"),
        )
    })
}
