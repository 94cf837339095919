//! An agent without a host: kernels are entries of a map, and code is a few words it understands.
//!
//! Query mode: `print <text>` writes to stdout, `input` waits for input and prints it, `wait` runs until interrupted or
//! destroyed, `fail <text>` is an exception of the agent, `panic <text>` a defect, `kinds` prints one thing of each kind; anything else runs and prints nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bai_model::{AgentId, KernelId, ResourceSlot, RunId, SlotTypes};
use bai_proto::agent::{
    AgentError, AgentRpc, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, FileListing, KernelConfig,
    KernelCreated, RunStatus, ServicePort, ServiceStart,
};
use bai_proto::event::{AgentEvent, AgentImage, AgentInfo};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::service::{self, Services};

/// The image that the fake agent offers, with the alias `python`.
pub const IMAGE: &str = "index.docker.io/lablup/python:3.6-debian";

/// See the module.
#[derive(Debug, Default)]
pub struct FakeAgent {
    state: Mutex<State>,
    interrupts: Notify,
    creations_are_held: watch::Sender<bool>,
    lists_are_held: watch::Sender<bool>,
    /// It does what agents of 19.06 do, and says so of nothing else.
    is_original: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    kernels: BTreeMap<KernelId, KernelConfig>,
    waiting_for_input: HashSet<KernelId>,
    /// What the next creation answers instead of succeeding.
    next_creation_fails: Option<AgentError>,
    /// The same for destructions.
    next_destruction_fails: Option<AgentError>,
    /// Calls in order, by name.
    calls: Vec<String>,
    /// What the calls of `execute` were asked to run, in order.
    codes: Vec<String>,
    files: BTreeMap<(KernelId, String), Bytes>,
    /// Services that have real ports, and those that were started.
    services: Option<Arc<Services>>,
    started: HashSet<(KernelId, String)>,
    /// How many times a kernel was started.
    lives: u32,
}

impl FakeAgent {
    /// What its heartbeat says: 8 cores, 16 GiB, one image.
    pub fn info() -> AgentInfo {
        let amounts = json!({ "cpu": "8", "mem": "17179869184" });
        AgentInfo {
            id: AgentId("i-fake".to_owned()),
            region: "local".to_owned(),
            addr: "inproc://i-fake".to_owned(),
            version: "19.06.0".to_owned(),
            available_slots: ResourceSlot::from_stored(&amounts).0,
            slot_types: SlotTypes::intrinsic(),
            compute_plugins: json!({}),
            images: vec![
                image(IMAGE, &["python"]),
                image("index.docker.io/lablup/python:3.7-debian", &[]),
            ],
            installed: Vec::new(),
        }
    }

    /// Makes it lack what agents of 19.06 lack.
    pub fn be_original(&self) {
        self.is_original.store(true, Ordering::Relaxed);
    }

    /// Makes the next creation fail.
    pub fn fail_next_creation(&self, error: AgentError) {
        self.lock().next_creation_fails = Some(error);
    }

    /// Makes the next destruction fail.
    pub fn fail_next_destruction(&self, error: AgentError) {
        self.lock().next_destruction_fails = Some(error);
    }

    /// Makes creations wait until they are let go.
    pub fn hold_creations(&self, held: bool) {
        self.creations_are_held.send_replace(held);
    }

    /// Makes it keep who asks what it runs waiting until they are let go.
    pub fn hold_lists(&self, held: bool) {
        self.lists_are_held.send_replace(held);
    }

    /// Whether somebody who asked what it runs is kept waiting.
    pub fn keeps_waiting(&self) -> bool {
        self.lists_are_held.receiver_count() > 0
    }

    /// Gives sessions that are made from now on services and a terminal on real ports.
    pub async fn open_services(&self) -> Arc<Services> {
        let services = Arc::new(Services::open().await);
        self.lock().services = Some(Arc::clone(&services));
        services
    }

    /// What `execute` was asked to run so far.
    pub fn codes(&self) -> Vec<String> {
        self.lock().codes.clone()
    }

    /// What a kernel is that has just been started.
    async fn created(&self) -> KernelCreated {
        let (services, life) = {
            let mut state = self.lock();
            state.lives += 1;
            (state.services.clone(), state.lives)
        };
        let mut created = created();
        if let Some(services) = services {
            created.container_id = format!("fake-{life}");
            created.service_ports = services.ports();
            (created.stdin_port, created.stdout_port) = service::terminal(life).await;
        }
        created
    }

    /// The names of the calls so far.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Loses a kernel, as a crash of the host would.
    pub fn forget(&self, kernel: KernelId) {
        self.lock().kernels.remove(&kernel);
    }

    /// The kernels that run.
    pub fn kernels(&self) -> Vec<KernelId> {
        self.lock().kernels.keys().copied().collect()
    }

    /// How a kernel was asked for.
    pub fn config(&self, kernel: KernelId) -> Option<KernelConfig> {
        self.lock().kernels.get(&kernel).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panicked inside the fake agent")
    }

    fn known(&self, call: &str, kernel: KernelId) -> Result<(), AgentError> {
        let mut state = self.lock();
        state.calls.push(call.to_owned());
        if state.kernels.contains_key(&kernel) {
            Ok(())
        } else {
            Err(AgentError::exception("KeyError", kernel.to_string()))
        }
    }
}

fn image(canonical: &str, aliases: &[&str]) -> AgentImage {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    AgentImage {
        canonical: canonical.to_owned(),
        digest: format!("sha256:{:064}", canonical.len()),
        labels: pairs(&[
            ("ai.backend.kernelspec", "1"),
            ("ai.backend.runtime-type", "python"),
        ]),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        resource_min: pairs(&[("cpu", "1"), ("mem", "256m")]),
    }
}

fn created() -> KernelCreated {
    KernelCreated {
        kernel_host: None,
        repl_in_port: 30000,
        repl_out_port: 30001,
        stdin_port: 0,
        stdout_port: 0,
        service_ports: vec![ServicePort {
            name: "jupyter".into(),
            protocol: "http".into(),
            container_port: 8080,
            host_port: 30002,
        }],
        container_id: "fake".to_owned(),
    }
}

fn everything() -> Vec<ConsoleItem> {
    let text = str::to_owned;
    vec![
        ConsoleItem::Stdout(text("out")),
        ConsoleItem::Stderr(text("err")),
        ConsoleItem::Media {
            mime: text("image/png"),
            data: text("data:"),
        },
        ConsoleItem::Html(text("<b>")),
        ConsoleItem::Log(text("log")),
        ConsoleItem::Stdout(text("more")),
    ]
}

fn reply(run_id: RunId, status: RunStatus, console: Vec<ConsoleItem>) -> ExecuteReply {
    let is_waiting = status == RunStatus::WaitingInput;
    ExecuteReply {
        run_id,
        status,
        exit_code: (status == RunStatus::Finished).then_some(0),
        options: is_waiting.then(|| {
            json!({ "is_password": false })
                .as_object()
                .cloned()
                .unwrap_or_default()
        }),
        console,
        files: Vec::new(),
    }
}

#[async_trait]
impl AgentRpc for FakeAgent {
    async fn create_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.lock().calls.push("create_kernel".to_owned());
        until_let_go(&self.creations_are_held).await;
        if let Some(error) = self.lock().next_creation_fails.take() {
            return Err(error);
        }
        self.lock().kernels.insert(kernel, config);
        Ok(self.created().await)
    }

    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Value>, AgentError> {
        let mut state = self.lock();
        state.calls.push("destroy_kernel".to_owned());
        if let Some(error) = state.next_destruction_fails.take() {
            return Err(error);
        }
        let stats = state.kernels.remove(&kernel).map(|_| json!({ "version": 2 }));
        drop(state);
        self.interrupts.notify_waiters();
        Ok(stats)
    }

    async fn restart_kernel(
        &self,
        kernel: KernelId,
        config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.known("restart_kernel", kernel)?;
        self.lock().kernels.insert(kernel, config);
        Ok(self.created().await)
    }

    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        self.known("execute", kernel)?;
        self.lock().codes.push(request.code.clone());
        let run_id = request.run_id.unwrap_or_else(|| RunId("0".repeat(32)));
        let stdout = |text: &str| vec![ConsoleItem::Stdout(text.to_owned())];
        let (word, rest) = request.code.split_once(' ').unwrap_or((&request.code, ""));
        Ok(Some(match (request.mode, word) {
            (ExecuteMode::Query, "print") => reply(run_id, RunStatus::Finished, stdout(&format!("{rest}\n"))),
            (ExecuteMode::Query, "kinds") => reply(run_id, RunStatus::Finished, everything()),
            (ExecuteMode::Query, "panic") => panic!("{rest}"),
            (ExecuteMode::Query, "fail") => return Err(AgentError::exception("RuntimeError", rest)),
            (ExecuteMode::Query, "input") => {
                self.lock().waiting_for_input.insert(kernel);
                reply(run_id, RunStatus::WaitingInput, stdout("name? "))
            }
            (ExecuteMode::Query, "wait") => {
                self.interrupts.notified().await;
                if !self.lock().kernels.contains_key(&kernel) {
                    return Ok(None);
                }
                reply(run_id, RunStatus::Finished, Vec::new())
            }
            (ExecuteMode::Input, _) if self.lock().waiting_for_input.remove(&kernel) => reply(
                run_id,
                RunStatus::Finished,
                stdout(&format!("got {}\n", request.code)),
            ),
            (ExecuteMode::Batch, _) => reply(run_id, RunStatus::CleanFinished, Vec::new()),
            _ => reply(run_id, RunStatus::Finished, Vec::new()),
        }))
    }

    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.known("interrupt_kernel", kernel)?;
        self.interrupts.notify_waiters();
        Ok(())
    }

    async fn get_completions(
        &self,
        kernel: KernelId,
        code: String,
        _: Value,
    ) -> Result<Vec<String>, AgentError> {
        self.known("get_completions", kernel)?;
        Ok(vec![format!("{code}_completed")])
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        self.known("get_logs", kernel)?;
        Ok("the log\n".to_owned())
    }

    async fn upload_file(&self, kernel: KernelId, path: String, data: Bytes) -> Result<(), AgentError> {
        self.known("upload_file", kernel)?;
        self.lock().files.insert((kernel, path), data);
        Ok(())
    }

    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError> {
        self.known("download_file", kernel)?;
        let found = self.lock().files.get(&(kernel, path.clone())).cloned();
        found.ok_or_else(|| {
            AgentError::exception(
                "FileNotFoundError",
                format!("Could not found the file: /home/work/{path}"),
            )
        })
    }

    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError> {
        self.known("list_files", kernel)?;
        if path != "." {
            return Ok(FileListing {
                files: String::new(),
                errors: "No such file or directory".into(),
                abspath: None,
            });
        }
        let names: Vec<Value> = self
            .lock()
            .files
            .keys()
            .map(|(_, name)| json!({ "filename": name }))
            .collect();
        Ok(FileListing {
            files: json!(names).to_string(),
            errors: String::new(),
            abspath: Some("/home/work/\n".into()),
        })
    }

    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.known("refresh_idle", kernel)
    }

    async fn start_service(
        &self,
        kernel: KernelId,
        service: String,
        _: Value,
    ) -> Result<ServiceStart, AgentError> {
        self.known("start_service", kernel)?;
        if service == "broken" {
            return Ok(ServiceStart::Failed("it is broken".to_owned()));
        }
        let is_new = self.lock().started.insert((kernel, service));
        Ok(if is_new {
            ServiceStart::Started
        } else {
            ServiceStart::Running
        })
    }

    /// It has every image but those whose name says `missing`.
    async fn add_image(&self, name: String) -> Result<AgentImage, AgentError> {
        if name.contains("missing") {
            return Err(AgentError::exception(
                "RuntimeError",
                format!("there is no {name}"),
            ));
        }
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Ok(AgentImage {
            canonical: format!("index.docker.io/library/{name}"),
            digest: format!("sha256:{}", "1".repeat(64)),
            labels: [
                label("ai.backend.kernelspec", "1"),
                label("ai.backend.runtime-type", "python"),
            ]
            .into(),
            aliases: vec![name],
            resource_min: [label("cpu", "1"), label("mem", "64m")].into(),
        })
    }

    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        if self.is_original.load(Ordering::Relaxed) {
            return Err(AgentError::not_provided("list_kernels"));
        }
        until_let_go(&self.lists_are_held).await;
        Ok(self.kernels())
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        let mut state = self.lock();
        state.calls.push("reset_agent".to_owned());
        state.kernels.clear();
        Ok(())
    }
}

/// A channel on which the agent's heartbeat already waits.
pub fn events() -> (
    tokio::sync::mpsc::Sender<AgentEvent>,
    tokio::sync::mpsc::Receiver<AgentEvent>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    sender
        .try_send(AgentEvent::InstanceHeartbeat(FakeAgent::info()))
        .expect("an empty channel");
    (sender, receiver)
}

async fn until_let_go(held: &watch::Sender<bool>) {
    let let_go = held.subscribe().wait_for(|held| !held).await.is_ok();
    assert!(let_go, "the sender is a part of the agent");
}

/// An agent as the manager holds it.
pub fn as_rpc(agent: &Arc<FakeAgent>) -> Arc<dyn AgentRpc> {
    agent.clone()
}
