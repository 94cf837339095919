//! The agent's answers to its manager's calls (`agent-protocol.md` 2).
//!
//! Invariants: work that changes kernels runs in tasks of the agent and is finished although the caller goes away;
//! everything that touches disks runs on the blocking pool and has a deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_model::{KernelId, RunId};
use bai_proto::agent::{
    AgentError, AgentRpc, BatchOptions, ExecuteMode, ExecuteReply, ExecuteRequest, FileListing, KernelConfig,
    KernelCreated, ServiceStart,
};
use bai_proto::event::AgentImage;
use bai_proto::runner::{Request, ServiceStatus};
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::error;
use crate::heartbeat;
use crate::host::Host;
use crate::kernel::files::Tree;
use crate::kernel::registry::{Kernel, Life};
use crate::kernel::run::NotStarted;
use crate::kernel::{lifecycle, logs, window};
use crate::tasks::blocking;

/// For work on files; a disk that takes longer is broken.
const FILES_DEADLINE: Duration = Duration::from_secs(60);
/// How long a service may take to start (`agent-protocol.md` 2.6).
const SERVICE_DEADLINE: Duration = Duration::from_secs(30);

impl Agent {
    /// Runs work of the agent's own to its end and answers with its outcome.
    async fn carry_out<T, F>(
        &self,
        name: &'static str,
        work: impl FnOnce(Arc<Host>) -> F,
    ) -> Result<T, AgentError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, AgentError>> + Send + 'static,
    {
        if self.host.tasks.is_stopped() {
            return Err(error::runtime("the agent is stopping"));
        }
        let work = work(Arc::clone(&self.host));
        let outcome = self.host.tasks.spawn(name, work).await;
        outcome.unwrap_or_else(|error| Err(error::runtime(format!("the agent failed: {error}"))))
    }

    fn used(&self, id: KernelId) -> Result<Arc<Kernel>, AgentError> {
        let kernel = self
            .host
            .registry
            .get(id)
            .ok_or_else(|| error::unknown_kernel(id))?;
        kernel.touch(self.host.clock.now());
        Ok(kernel)
    }

    /// The kernel's life, once a creation or a restart that goes on has finished.
    async fn life(&self, id: KernelId) -> Option<Result<Arc<Life>, AgentError>> {
        if let Some(life) = self.host.registry.get(id).and_then(|kernel| kernel.life()) {
            return Some(Ok(life));
        }
        drop(self.host.registry.turn(id).await);
        let life = self.host.registry.get(id)?.life();
        Some(life.ok_or_else(|| error::runtime(format!("the kernel {id} is stopped; restart or destroy it"))))
    }

    async fn with_files<T: Send + 'static>(
        &self,
        id: KernelId,
        work: impl FnOnce(Tree) -> T + Send + 'static,
    ) -> Result<T, AgentError> {
        let tree = self.used(id)?.state().tree(&self.host.layout.scratch_of(id));
        on_disk(move || work(tree)).await
    }
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, AgentError> {
    let outcome = tokio::time::timeout(FILES_DEADLINE, blocking(work))
        .await
        .map_err(|_| AgentError::Timeout)?;
    outcome.ok_or_else(|| error::runtime("the agent failed while it worked on files"))
}

/// The steps of batch mode; those that were not asked for do nothing.
fn steps(batch: BatchOptions) -> Vec<Request> {
    let step = |command: Option<String>| command.unwrap_or_default();
    vec![
        Request::Clean(step(batch.clean)),
        Request::Build(step(batch.build)),
        Request::Exec(step(batch.exec)),
    ]
}

async fn send(life: &Life, request: Request) -> Result<(), AgentError> {
    let sent = life.client.send(request).await;
    sent.map_err(|error| error::runtime(error.to_string()))
}

#[async_trait]
impl AgentRpc for Agent {
    async fn create_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.carry_out("create kernel", |host| async move {
            lifecycle::create(&host, kernel, config).await
        })
        .await
    }

    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Value>, AgentError> {
        let work = |host| async move { lifecycle::destroy(&host, kernel, "user-requested").await };
        self.carry_out("destroy kernel", work).await
    }

    async fn restart_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.carry_out("restart kernel", |host| async move {
            lifecycle::restart(&host, kernel, config).await
        })
        .await
    }

    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        let deadline = request
            .flush_timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let Some(life) = self.life(kernel).await else {
            lifecycle::tell_unknown(&self.host, kernel).await;
            return Err(error::runtime(format!(
                "the container for kernel {kernel} is not found"
            )));
        };
        let life = life?;
        // Between the look-up and here the kernel may have gone; the closed runs say so.
        _ = self.used(kernel);
        let run = request
            .run_id
            .unwrap_or_else(|| RunId::generate(self.host.random.as_ref(), 32));
        // A runner of 19.06 takes them itself, if it has a terminal.
        if request.mode == ExecuteMode::Query
            && life.spec.runner.is_own()
            && let Some(command) = window::Command::parse(&request.code)
        {
            if let window::Command::Resize(size) = command {
                life.window.send_replace(Some(size));
            }
            return Ok(Some(command.reply(run)));
        }
        let started = match request.mode {
            ExecuteMode::Query => life.runs.start(&run, vec![Request::Code(request.code)]),
            ExecuteMode::Batch => life.runs.start(&run, steps(request.batch)),
            ExecuteMode::Input => {
                if life.runs.input(&run, &request.code) {
                    send(&life, Request::Input(request.code)).await?;
                }
                Ok(())
            }
            ExecuteMode::Continue => {
                life.runs.claim(&run);
                Ok(())
            }
        };
        match started {
            Ok(()) => {}
            Err(NotStarted::Gone) => return Ok(None),
            Err(refusal) => return Err(error::runtime(refusal.to_string())),
        }
        let reply = tokio::select! {
            biased;
            reply = life.runs.collect(&run, deadline) => Ok(reply),
            silent = life.client.silent() => Err(error::runtime(silent.to_string())),
        };
        // A long wait is use, too.
        _ = self.used(kernel);
        reply
    }

    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.used(kernel)?;
        let life = self
            .life(kernel)
            .await
            .ok_or_else(|| error::unknown_kernel(kernel))??;
        send(&life, Request::Interrupt).await?;
        life.runs.interrupted();
        Ok(())
    }

    async fn get_completions(
        &self,
        kernel: KernelId,
        code: String,
        options: Value,
    ) -> Result<Vec<String>, AgentError> {
        self.used(kernel)?;
        let life = self
            .life(kernel)
            .await
            .ok_or_else(|| error::unknown_kernel(kernel))??;
        let mut payload = Map::from_iter([("code".to_owned(), Value::from(code))]);
        if let Value::Object(options) = options {
            payload.extend(options.into_iter().filter(|(name, _)| name != "code"));
        }
        let answer = life.client.complete(Value::Object(payload).to_string()).await;
        let answer = answer.map_err(|error| error::runtime(error.to_string()))?;
        Ok(answer
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default())
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        let state = self.used(kernel)?.state();
        if let (false, Some(container_id)) = (state.runner.is_own(), &state.container_id) {
            let printed = self.host.runtime.printed(container_id).await;
            return printed.map_err(|error| error::runtime(error.to_string()));
        }
        let scratch = self.host.layout.scratch_of(kernel);
        let log = on_disk(move || logs::read(&scratch)).await?;
        log.map_err(|error| AgentError::exception("OSError", format!("the log cannot be read: {error}")))
    }

    async fn upload_file(&self, kernel: KernelId, path: String, data: Bytes) -> Result<(), AgentError> {
        let unique = self.host.unique();
        self.with_files(kernel, move |tree| tree.upload(&path, &data, &unique))
            .await?
    }

    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError> {
        self.with_files(kernel, move |tree| tree.download(&path)).await?
    }

    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError> {
        self.with_files(kernel, move |tree| tree.list(&path)).await
    }

    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError> {
        // An unknown kernel needs no postponement.
        _ = self.used(kernel);
        Ok(())
    }

    async fn start_service(
        &self,
        kernel: KernelId,
        service: String,
        options: Value,
    ) -> Result<ServiceStart, AgentError> {
        let state = self.used(kernel)?.state();
        let Some(request) = state.service_request(&service, options) else {
            return Ok(ServiceStart::Failed("invalid service name".to_owned()));
        };
        let life = self
            .life(kernel)
            .await
            .ok_or_else(|| error::unknown_kernel(kernel))??;
        let asking = life
            .ended
            .run_until_cancelled(life.client.start_service(&request));
        let answer = match tokio::time::timeout(SERVICE_DEADLINE, asking).await {
            Ok(Some(answer)) => answer.map_err(|error| error::runtime(error.to_string()))?,
            Ok(None) => None,
            Err(_) => return Ok(ServiceStart::Failed("timeout".to_owned())),
        };
        Ok(match answer {
            Some(result) => match result.status {
                ServiceStatus::Started => ServiceStart::Started,
                ServiceStatus::Running => ServiceStart::Running,
                ServiceStatus::Failed | ServiceStatus::Ended => {
                    ServiceStart::Failed(result.error.unwrap_or_default())
                }
            },
            None => ServiceStart::Failed("cancelled".to_owned()),
        })
    }

    /// Of the container engine, labelled for sessions or not, from now on and after a restart.
    async fn add_image(&self, name: String) -> Result<AgentImage, AgentError> {
        self.carry_out("add image", |host| async move {
            let added = host.images.add(&name).await?;
            heartbeat::send(&host).await;
            Ok(added)
        })
        .await
    }

    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        Ok(self.host.registry.all().iter().map(|kernel| kernel.id).collect())
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        self.destroy_all("agent-reset").await
    }
}
