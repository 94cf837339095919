//! Peers for the tests: an agent whose answers are given to it, and raw ends of connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{KernelId, RunId};
use bai_proto::agent::{
    AgentError, AgentRpc, ExecuteMode, ExecuteReply, ExecuteRequest, FileListing, KernelConfig,
    KernelCreated, RunStatus, ServiceStart,
};
use bai_proto::rpc::{AgentOptions, RpcServer, ServerOptions, ZmqAgent};
use bai_proto::zmtp::{Connection, Endpoint, Incoming, Limits, LinkOptions, Message, SocketType, dial};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const LIMITS: Limits = Limits {
    frames: 16,
    bytes: 64 << 20,
};
/// More than anything here takes, so that a hanging test fails instead.
pub const LONG: Duration = Duration::from_secs(60);
pub const KERNEL: &str = "0b31a1e2-9d2c-4b3a-9c1a-1d2f3a4b5c6d";

pub fn kernel() -> KernelId {
    KERNEL.parse().expect("a kernel id")
}

#[derive(Debug)]
pub struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        chrono::DateTime::UNIX_EPOCH
    }
}

/// Counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU8);

impl Random for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.0.fetch_add(1, Ordering::Relaxed));
    }
}

pub fn agent_options() -> AgentOptions {
    AgentOptions {
        clock: Arc::new(StoppedClock),
        random: Arc::new(Counter::default()),
        tls: None,
    }
}

pub fn link_options() -> LinkOptions {
    LinkOptions {
        limits: LIMITS,
        tls: None,
        random: Arc::new(Counter::default()),
    }
}

pub fn server_options() -> ServerOptions {
    ServerOptions::new(Arc::new(StoppedClock), Arc::new(Counter::default()))
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// Fails instead of hanging.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work)
        .await
        .expect("this should not take so long")
}

/// A server that runs until dropped or stopped.
pub struct Serving {
    pub address: SocketAddr,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Serving {
    pub async fn start(agent: Arc<dyn AgentRpc>, options: ServerOptions) -> Self {
        Self::at(loopback(), agent, options).await
    }

    pub async fn at(address: SocketAddr, agent: Arc<dyn AgentRpc>, options: ServerOptions) -> Self {
        let server = RpcServer::bind(address, agent, options)
            .await
            .expect("a free port");
        let address = server.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        Self {
            address,
            stop: stop.drop_guard(),
            task,
        }
    }

    /// Ends it and waits until the port is free.
    pub async fn stop(self) {
        drop(self.stop);
        soon(self.task).await.expect("an orderly end");
    }

    pub fn client(&self) -> ZmqAgent {
        ZmqAgent::connect(endpoint(self.address), agent_options())
    }

    pub async fn dealer(&self) -> Raw {
        Raw::dial(self.address, SocketType::Dealer).await
    }
}

/// One end of a connection that says what the test says.
pub struct Raw(pub Connection);

impl Raw {
    pub async fn dial(address: SocketAddr, ours: SocketType) -> Self {
        let connection = dial(&endpoint(address), ours, LIMITS, None).await;
        Self(connection.expect("a connection"))
    }

    pub async fn send(&mut self, frames: &[&[u8]]) {
        let message: Message = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        self.0.writer.send(&message).await.expect("an open connection");
    }

    /// The next message; `None` at the end of the connection, however it comes.
    pub async fn recv(&mut self) -> Option<Message> {
        loop {
            match soon(self.0.reader.next()).await {
                Ok(Some(Incoming::Message(message))) => return Some(message),
                Ok(Some(Incoming::Command(_))) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// An agent that does what it is told: `execute` in query mode answers the code, and `hang` waits until `release`.
#[derive(Debug, Default)]
pub struct Stub {
    pub calls: Mutex<Vec<String>>,
    pub called: Notify,
    pub release: Notify,
}

impl Stub {
    fn note(&self, call: &str) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call.to_owned());
        self.called.notify_one();
    }

    pub fn noted(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many calls have come.
    pub async fn calls_come_to(&self, count: usize) {
        soon(async {
            while self.noted().len() < count {
                self.called.notified().await;
            }
        })
        .await;
    }
}

pub fn created() -> KernelCreated {
    KernelCreated {
        kernel_host: Some("127.0.0.1".to_owned()),
        repl_in_port: 30000,
        repl_out_port: 30001,
        stdin_port: 0,
        stdout_port: 0,
        service_ports: Vec::new(),
        container_id: "c0ffee".to_owned(),
    }
}

pub fn query(code: &str) -> ExecuteRequest {
    ExecuteRequest {
        run_id: Some(RunId::from("run1")),
        mode: ExecuteMode::Query,
        code: code.to_owned(),
        batch: Default::default(),
        flush_timeout: Some(Duration::from_secs(2)),
    }
}

#[async_trait]
impl AgentRpc for Stub {
    async fn create_kernel(&self, _: KernelId, config: KernelConfig) -> Result<KernelCreated, AgentError> {
        self.note(&format!("create {}", config.image.canonical));
        Ok(created())
    }

    async fn destroy_kernel(&self, _: KernelId) -> Result<Option<Value>, AgentError> {
        self.note("destroy");
        Ok(Some(json!({ "version": 2 })))
    }

    async fn restart_kernel(&self, _: KernelId, _: KernelConfig) -> Result<KernelCreated, AgentError> {
        self.note("restart");
        Ok(created())
    }

    async fn execute(
        &self,
        _: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        self.note(&format!("execute {}", request.code));
        match request.code.as_str() {
            "hang" => self.release.notified().await,
            "none" => return Ok(None),
            "panic" => panic!("as the test wants it"),
            "timeout" => return Err(AgentError::Timeout),
            "fail" => return Err(AgentError::exception("RuntimeError", "it's broken")),
            _ => {}
        }
        Ok(Some(ExecuteReply {
            run_id: request.run_id.unwrap_or_else(|| RunId::from("assigned")),
            status: RunStatus::Finished,
            exit_code: Some(0),
            options: None,
            console: vec![bai_proto::agent::ConsoleItem::Stdout(request.code)],
            files: Vec::new(),
        }))
    }

    async fn interrupt_kernel(&self, _: KernelId) -> Result<(), AgentError> {
        self.note("interrupt");
        Ok(())
    }

    async fn get_completions(&self, _: KernelId, code: String, _: Value) -> Result<Vec<String>, AgentError> {
        self.note("complete");
        Ok(vec![format!("{code}nt"), format!("{code}vate")])
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        self.note("logs");
        Err(AgentError::exception("KeyError", kernel.to_string()))
    }

    async fn upload_file(&self, _: KernelId, path: String, data: Bytes) -> Result<(), AgentError> {
        self.note(&format!("upload {path} {}", hex::encode(data)));
        Ok(())
    }

    async fn download_file(&self, _: KernelId, _: String) -> Result<Bytes, AgentError> {
        self.note("download");
        Ok(Bytes::from_static(b"\0tar\xff"))
    }

    async fn list_files(&self, _: KernelId, _: String) -> Result<FileListing, AgentError> {
        self.note("list files");
        Ok(FileListing {
            files: "[]".to_owned(),
            errors: String::new(),
            abspath: Some("/home/work/\n".to_owned()),
        })
    }

    async fn refresh_idle(&self, _: KernelId) -> Result<(), AgentError> {
        self.note("refresh");
        Ok(())
    }

    async fn start_service(
        &self,
        _: KernelId,
        service: String,
        _: Value,
    ) -> Result<ServiceStart, AgentError> {
        self.note("start service");
        Ok(match service.as_str() {
            "jupyter" => ServiceStart::Started,
            _ => ServiceStart::Failed("invalid service name".to_owned()),
        })
    }

    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        self.note("list kernels");
        Ok(vec![kernel()])
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        self.note("reset");
        Ok(())
    }
}
