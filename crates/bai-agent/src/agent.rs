//! The agent: kernels by id, and the calls that managers make (`agent-protocol.md` 2).
//!
//! Invariants: one operation changes a kernel at a time; a kernel's record is on disk before its processes run and is
//! gone only after they are; what a kernel held is given back once, by whoever takes it out of the map.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{AgentId, KernelId, RunId, SlotTypes};
use bai_proto::agent::{
    AgentError, AgentRpc, ExecuteReply, ExecuteRequest, FileListing, KernelConfig, KernelCreated,
};
use bai_proto::event::{AgentEvent, AgentInfo};
use bai_proto::sandbox::Refusal;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::image;
use crate::kernel::client::RunnerClient;
use crate::kernel::state::{KernelState, MAX_KERNELS};
use crate::kernel::{files, logs};
use crate::resource::{Allocator, Capacity};
use crate::runtime::{KernelSpec, Runtime};

/// How often idle kernels are looked for.
const IDLE_PERIOD: Duration = Duration::from_secs(5);
/// Digits of the run ids that the agent assigns.
const RUN_ID_DIGITS: usize = 32;

/// What an agent is made of.
#[derive(Debug)]
pub struct AgentOptions {
    pub id: AgentId,
    /// Holds `scratch/<kernel>` for each kernel.
    pub data_dir: PathBuf,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub events: mpsc::Sender<AgentEvent>,
    pub capacity: Capacity,
    /// Offer only the host's images that go by this name (a stack for one command).
    pub only_image: Option<String>,
}

impl AgentOptions {
    /// An agent that offers everything that the host has.
    pub fn new(
        id: AgentId,
        data_dir: PathBuf,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        events: mpsc::Sender<AgentEvent>,
    ) -> Self {
        Self {
            id,
            data_dir,
            runtime,
            clock,
            random,
            events,
            capacity: Capacity::discover(),
            only_image: None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    /// For the tasks that watch over kernels.
    me: Weak<Self>,
    id: AgentId,
    data_dir: PathBuf,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    events: mpsc::Sender<AgentEvent>,
    kernels: Mutex<HashMap<KernelId, Kernel>>,
    /// One operation at a time on each kernel.
    locks: Mutex<HashMap<KernelId, Arc<tokio::sync::Mutex<()>>>>,
    allocator: Mutex<Allocator>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A kernel that runs.
#[derive(Clone, Debug)]
struct Kernel {
    state: KernelState,
    client: RunnerClient,
    last_used: DateTime<Utc>,
}

impl Agent {
    /// Finds the kernels of the agent before, and reports for duty.
    ///
    /// # Errors
    /// When the data directory cannot be used.
    pub async fn start(options: AgentOptions) -> io::Result<Arc<Self>> {
        fs::create_dir_all(options.data_dir.join("scratch"))?;
        let info = AgentInfo {
            id: options.id.clone(),
            region: "local".to_owned(),
            addr: format!("inproc://{}", options.id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            available_slots: options.capacity.slots(),
            slot_types: SlotTypes::intrinsic(),
            compute_plugins: serde_json::json!({}),
            images: image::discover(&options.data_dir, options.only_image.as_deref()).await,
        };
        let agent = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: options.id,
            data_dir: options.data_dir,
            runtime: options.runtime,
            clock: options.clock,
            random: options.random,
            events: options.events,
            kernels: Mutex::default(),
            locks: Mutex::default(),
            allocator: Mutex::new(Allocator::new(options.capacity)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        agent.adopt_all().await?;
        agent.tell(AgentEvent::InstanceHeartbeat(info)).await;
        let idle = Arc::clone(&agent);
        agent.tasks.spawn(async move { idle.end_idle_kernels().await });
        Ok(agent)
    }

    /// Stops taking part; kernels are destroyed or left for the next agent.
    pub async fn shutdown(&self, destroy_kernels: bool) {
        if destroy_kernels {
            self.destroy_all().await;
        }
        self.stopping.cancel();
        for kernel in lock(&self.kernels).values() {
            kernel.client.close();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Protections that this machine refuses, as far as the kernels that were started have shown.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.runtime.refusals()
    }

    async fn tell(&self, event: AgentEvent) {
        if self.events.send(event).await.is_err() {
            tracing::debug!(agent.id = %self.id, "nobody listens to the agent's events");
        }
    }

    fn scratch(&self, kernel: KernelId) -> PathBuf {
        self.data_dir.join("scratch").join(kernel.to_string())
    }

    fn operation(&self, kernel: KernelId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.locks).entry(kernel).or_default())
    }

    fn find(&self, kernel: KernelId) -> Result<Kernel, AgentError> {
        let found = lock(&self.kernels).get(&kernel).cloned();
        found.ok_or_else(|| AgentError::exception("KeyError", kernel.to_string()))
    }

    /// Finds a kernel and postpones its idle time-out.
    fn find_in_use(&self, kernel: KernelId) -> Result<Kernel, AgentError> {
        let now = self.clock.now();
        if let Some(found) = lock(&self.kernels).get_mut(&kernel) {
            found.last_used = now;
        }
        self.find(kernel)
    }

    fn spec(&self, state: &KernelState) -> KernelSpec {
        state.spec(self.scratch(state.kernel))
    }

    // === Lives of kernels ===

    async fn adopt_all(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.data_dir.join("scratch"))? {
            let path = entry?.path();
            let Ok(state) = KernelState::load(&path) else {
                tracing::warn!(path = %path.display(), "removing what is left of a kernel without a record");
                remove_scratch(path).await;
                continue;
            };
            self.adopt(state).await;
        }
        Ok(())
    }

    async fn adopt(&self, state: KernelState) {
        let spec = self.spec(&state);
        let adopted = match &state.container_id {
            Some(container_id) => self.runtime.adopt(&spec, container_id).await.ok().flatten(),
            None => None,
        };
        if adopted.is_some() {
            tracing::info!(kernel.id = %state.kernel, "a kernel goes on");
            lock(&self.allocator).take(&state.allocation);
            self.register(state);
            return;
        }
        // Half made, or ended while nobody looked.
        let container_id = match &state.container_id {
            Some(container_id) => Some(container_id.clone()),
            None => self.runtime.find(&spec).await.map(|found| found.container_id),
        };
        let _ = self
            .runtime
            .kill(&spec, container_id.as_deref().unwrap_or_default())
            .await;
        remove_scratch(spec.scratch).await;
        self.terminated(state.kernel, "lost-while-agent-was-down", state.generation, None)
            .await;
    }

    async fn terminated(&self, kernel: KernelId, reason: &str, generation: u64, stats: Option<Value>) {
        let reason = reason.to_owned();
        self.tell(AgentEvent::KernelTerminated {
            kernel,
            reason,
            generation: Some(generation),
            stats,
        })
        .await;
    }

    async fn create(&self, kernel: KernelId, config: KernelConfig) -> Result<KernelCreated, AgentError> {
        if let Ok(found) = self.find(kernel) {
            return Ok(found.state.created());
        }
        self.tell(AgentEvent::KernelPreparing { kernel }).await;
        let allocation = lock(&self.allocator).allocate(&config.resource_slots)?;
        let label = |name: &str| config.image.labels.get(name).cloned();
        let mut state = KernelState {
            kernel,
            generation: 1,
            container_id: None,
            allocation,
            index: self.free_index(),
            idle_timeout: config.idle_timeout,
            runtime_type: label("ai.backend.runtime-type").unwrap_or_else(|| "python".to_owned()),
            runtime_path: label("ai.backend.runtime-path"),
            environ: config.environ,
        };
        self.tell(AgentEvent::KernelCreating { kernel }).await;
        match self.launch(&mut state).await {
            Ok(()) => {
                let created = state.created();
                self.register(state);
                self.tell(AgentEvent::KernelStarted { kernel }).await;
                Ok(created)
            }
            Err(error) => {
                lock(&self.allocator).free(&state.allocation);
                remove_scratch(self.scratch(kernel)).await;
                Err(error)
            }
        }
    }

    /// Makes the folders and the record, and starts the processes.
    async fn launch(&self, state: &mut KernelState) -> Result<(), AgentError> {
        let failed = |error: &dyn std::fmt::Display| AgentError::exception("RuntimeError", error.to_string());
        let scratch = self.scratch(state.kernel);
        let config = config_files(state);
        let recorded = {
            let (scratch, state) = (scratch.clone(), state.clone());
            tokio::task::spawn_blocking(move || -> io::Result<()> {
                for folder in ["work", "config", "run"] {
                    fs::create_dir_all(scratch.join(folder))?;
                }
                for (name, text) in config {
                    fs::write(scratch.join("config").join(name), text)?;
                }
                state.save(&scratch)
            })
        };
        recorded
            .await
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        let spec = self.spec(state);
        let started = self.runtime.start(&spec).await.map_err(|error| failed(&error))?;
        state.container_id = Some(started.container_id.clone());
        if let Err(error) = state.save(&scratch) {
            _ = self.runtime.kill(&spec, &started.container_id).await;
            return Err(failed(&error));
        }
        Ok(())
    }

    /// Puts a running kernel into the map and watches over it.
    fn register(&self, state: KernelState) {
        let spec = self.spec(&state);
        let client = RunnerClient::start(Arc::clone(&self.runtime), spec.clone(), &self.tasks);
        let (kernel, generation) = (state.kernel, state.generation);
        let container_id = state.container_id.clone().unwrap_or_default();
        let entry = Kernel {
            state,
            client,
            last_used: self.clock.now(),
        };
        lock(&self.kernels).insert(kernel, entry);
        let Some(agent) = self.me.upgrade() else { return };
        self.tasks.spawn(async move {
            let reason = tokio::select! {
                () = agent.stopping.cancelled() => return,
                reason = agent.runtime.wait(&spec, &container_id) => reason,
            };
            let operation = agent.operation(kernel);
            let _operation = operation.lock().await;
            // A restart or a destruction may have been faster.
            if agent
                .find(kernel)
                .is_ok_and(|found| found.state.generation == generation)
            {
                agent.unmake(kernel, &reason).await;
            }
        });
    }

    fn free_index(&self) -> u32 {
        let kernels = lock(&self.kernels);
        let taken: std::collections::HashSet<u32> =
            kernels.values().map(|kernel| kernel.state.index).collect();
        (0..MAX_KERNELS)
            .find(|index| !taken.contains(index))
            .unwrap_or(MAX_KERNELS)
    }

    /// Ends a kernel, gives back what it held and says so. The last statistics are the answer.
    async fn unmake(&self, kernel: KernelId, reason: &str) -> Option<Value> {
        let entry = lock(&self.kernels).remove(&kernel)?;
        entry.client.close();
        let spec = self.spec(&entry.state);
        let container_id = entry.state.container_id.clone().unwrap_or_default();
        let stats = self.runtime.stats(&spec, &container_id).await;
        if let Err(error) = self.runtime.kill(&spec, &container_id).await {
            tracing::error!(kernel.id = %kernel, %error, "a kernel's processes could not be ended");
        }
        remove_scratch(spec.scratch).await;
        lock(&self.allocator).free(&entry.state.allocation);
        lock(&self.locks).remove(&kernel);
        self.terminated(kernel, reason, entry.state.generation, stats.clone())
            .await;
        stats
    }

    async fn end_idle_kernels(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(IDLE_PERIOD) => {}
            }
            for kernel in self.idle_kernels() {
                tracing::info!(kernel.id = %kernel, "ending an idle kernel");
                let operation = self.operation(kernel);
                let _operation = operation.lock().await;
                self.unmake(kernel, "idle-timeout").await;
            }
        }
    }

    fn idle_kernels(&self) -> Vec<KernelId> {
        let now = self.clock.now();
        let is_idle = |kernel: &Kernel| {
            let unused = now.signed_duration_since(kernel.last_used).num_seconds();
            let timeout = i64::try_from(kernel.state.idle_timeout).unwrap_or(i64::MAX);
            timeout > 0 && unused > timeout
        };
        lock(&self.kernels)
            .iter()
            .filter(|(_, kernel)| is_idle(kernel))
            .map(|(id, _)| *id)
            .collect()
    }
}

/// The files of `/home/config` (`agent-protocol.md` 6.9).
fn config_files(state: &KernelState) -> [(&'static str, String); 2] {
    let environ: String = state
        .environ
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    let shares: Vec<String> = state
        .allocation
        .cpus
        .iter()
        .map(|(cpu, amount)| format!("{cpu}:{amount}"))
        .collect();
    let slots = serde_json::json!({
        "cpu": state.allocation.cpus.values().sum::<u64>().to_string(),
        "mem": state.allocation.memory.to_string(),
    });
    let resource = format!(
        "CID={}\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={slots}\nIDLE_TIMEOUT={}\nCPU_SHARES={}\nMEM_SHARES=root:{}\n",
        state.container_id.as_deref().unwrap_or("None"),
        state.idle_timeout,
        shares.join(","),
        state.allocation.memory,
    );
    [("environ.txt", environ), ("resource.txt", resource)]
}

async fn remove_scratch(path: PathBuf) {
    let shown = path.display().to_string();
    let removed = tokio::task::spawn_blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(path = shown, %error, "a kernel's files could not be removed"),
        Err(error) => tracing::warn!(path = shown, %error, "removing a kernel's files was interrupted"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes protect is valid after any panic: operations on it are single calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, AgentError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| AgentError::exception("RuntimeError", error.to_string()))
}

#[async_trait]
impl AgentRpc for Agent {
    async fn create_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        let operation = self.operation(kernel);
        let _operation = operation.lock().await;
        self.create(kernel, config).await
    }

    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Value>, AgentError> {
        let operation = self.operation(kernel);
        let _operation = operation.lock().await;
        if self.find(kernel).is_err() {
            lock(&self.locks).remove(&kernel);
            self.terminated(kernel, "self-terminated", 0, None).await;
            return Ok(None);
        }
        Ok(self.unmake(kernel, "user-requested").await)
    }

    async fn restart_kernel(
        &self,
        kernel: KernelId,
        _config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        let operation = self.operation(kernel);
        let _operation = operation.lock().await;
        let entry = self.find(kernel)?;
        entry.client.close();
        let mut state = entry.state.clone();
        let container_id = state.container_id.take().unwrap_or_default();
        state.generation += 1;
        lock(&self.kernels)
            .entry(kernel)
            .and_modify(|kernel| kernel.state.generation += 1);
        let failed = |error: &dyn std::fmt::Display| AgentError::exception("RuntimeError", error.to_string());
        self.runtime
            .kill(&self.spec(&state), &container_id)
            .await
            .map_err(|error| failed(&error))?;
        if let Err(error) = self.launch(&mut state).await {
            self.unmake(kernel, "restart-failed").await;
            return Err(error);
        }
        let created = state.created();
        self.register(state);
        Ok(created)
    }

    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        let message = || {
            AgentError::exception(
                "RuntimeError",
                format!("The container for kernel {kernel} is not found!"),
            )
        };
        let entry = self.find_in_use(kernel).map_err(|_| message())?;
        let run_id = request.run_id.clone();
        let run_id = run_id.unwrap_or_else(|| RunId::generate(self.random.as_ref(), RUN_ID_DIGITS));
        let reply = entry.client.execute(run_id, request).await;
        _ = self.find_in_use(kernel);
        reply
    }

    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.find_in_use(kernel)?.client.interrupt().await
    }

    async fn get_completions(
        &self,
        kernel: KernelId,
        code: String,
        options: Value,
    ) -> Result<Vec<String>, AgentError> {
        let mut request = options.as_object().cloned().unwrap_or_default();
        request.insert("code".to_owned(), code.into());
        self.find_in_use(kernel)?
            .client
            .complete(Value::Object(request).to_string())
            .await
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        self.find_in_use(kernel)?;
        let scratch = self.scratch(kernel);
        Ok(blocking(move || logs::read(&scratch)).await?.unwrap_or_default())
    }

    async fn upload_file(&self, kernel: KernelId, path: String, data: Bytes) -> Result<(), AgentError> {
        self.find_in_use(kernel)?;
        let work = self.scratch(kernel).join("work");
        blocking(move || files::upload(&work, &path, &data)).await?
    }

    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError> {
        self.find_in_use(kernel)?;
        let work = self.scratch(kernel).join("work");
        blocking(move || files::download(&work, &path)).await?
    }

    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError> {
        self.find_in_use(kernel)?;
        let work = self.scratch(kernel).join("work");
        blocking(move || files::list(&work, &path)).await
    }

    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.find_in_use(kernel).map(drop)
    }

    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        Ok(lock(&self.kernels).keys().copied().collect())
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        self.destroy_all().await;
        Ok(())
    }
}

impl Agent {
    async fn destroy_all(&self) {
        let kernels: Vec<KernelId> = lock(&self.kernels).keys().copied().collect();
        for kernel in kernels {
            let operation = self.operation(kernel);
            let _operation = operation.lock().await;
            self.unmake(kernel, "agent-reset").await;
        }
    }
}
