//! Agents that are none, for measuring a manager: each registers, beats and answers as an agent of 19.06 does
//! (`agent-protocol.md` 2, 3), has a port of its own, and runs nothing. Thousands of them fit into one process.
//!
//! Not here: anything of a real agent (`bai-agent`), of which they share the protocol alone.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bai_model::time::Clock as _;
use bai_model::{AgentId, KernelId, ResourceSlot, RunId, SlotTypes};
use bai_proto::agent::{
    AgentError, AgentRpc, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, FileListing, KernelConfig,
    KernelCreated, RunStatus, ServiceStart,
};
use bai_proto::event::{AgentEvent, AgentInfo, EventSender, InstalledImage};
use bai_proto::rpc::{RpcServer, ServerOptions};
use bai_proto::zmtp::{Endpoint, Limits, LinkOptions};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::system::{SystemClock, SystemRandom};

/// The ports that kernels say they have; nobody listens there.
const PORTS: std::ops::Range<u16> = 30_000..60_000;
/// Events of an agent that may wait to be sent.
const BACKLOG: usize = 1024;
/// How long events that were not sent may hold the end up.
const FLUSH: Duration = Duration::from_secs(2);

/// What simulated agents are like.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Where their events go.
    pub manager: Endpoint,
    /// Where they are called.
    pub listen: IpAddr,
    /// They are called `<prefix>0001` and so on.
    pub prefix: String,
    pub region: String,
    pub slots: ResourceSlot,
    /// Images that they have: canonical name and digest.
    pub images: Vec<(String, String)>,
    /// Between heartbeats.
    pub beat: Duration,
    /// Where it is written when each kernel was to be made: microseconds since 1970, a line each.
    pub creations: Option<Arc<File>>,
}

/// Agents that run until [`Simulated::stop`].
#[derive(Debug)]
pub struct Simulated {
    agents: Vec<Arc<EventSender>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Simulation {
    /// Starts so many agents. Their heartbeats are spread evenly over the time between two.
    ///
    /// # Errors
    /// When one cannot listen.
    pub async fn start(&self, count: usize) -> Result<Simulated> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let ports = Arc::new(Ports::default());
        let begun = Instant::now();
        let mut agents = Vec::with_capacity(count);
        for number in 0..count {
            let part = u32::try_from(number).unwrap_or(u32::MAX);
            let whole = u32::try_from(count).unwrap_or(u32::MAX);
            let first_beat = begun + self.beat * part / whole;
            let id = AgentId(format!("{}{:04}", self.prefix, number + 1));
            agents.push(
                self.start_agent(id, Arc::clone(&ports), first_beat, &tasks, &stop)
                    .await?,
            );
        }
        tasks.close();
        Ok(Simulated { agents, tasks, stop })
    }

    async fn start_agent(
        &self,
        id: AgentId,
        ports: Arc<Ports>,
        first_beat: Instant,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<EventSender>> {
        let random = Arc::new(SystemRandom);
        let (events, mut told) = mpsc::channel(BACKLOG);
        let agent = SimulatedAgent {
            kernels: Mutex::default(),
            ports,
            events,
            creations: self.creations.clone(),
        };
        let options = ServerOptions::new(Arc::new(SystemClock), random.clone());
        let server = RpcServer::bind(SocketAddr::new(self.listen, 0), Arc::new(agent), options).await;
        let server = server.with_context(|| format!("{id} cannot listen on {}", self.listen))?;
        let address = server.local_addr()?;
        let link = LinkOptions {
            // Nothing comes back.
            limits: Limits {
                frames: 1,
                bytes: 1024,
            },
            tls: None,
            random,
        };
        let sender = Arc::new(EventSender::connect(id.clone(), self.manager.clone(), link));
        tasks.spawn(server.run(stop.clone()));
        let info = self.info(id, address);
        let (out, stopped, beat) = (Arc::clone(&sender), stop.clone(), self.beat);
        tasks.spawn(async move {
            let mut beats = interval_at(first_beat, beat);
            beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (agent, heartbeat) = (info.id.clone(), AgentEvent::InstanceHeartbeat(info));
            let mut has_started = false;
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    _ = beats.tick() => out.send(&heartbeat).await,
                    Some(event) = told.recv() => out.send(&event).await,
                }
                if !std::mem::replace(&mut has_started, true) {
                    out.send(&AgentEvent::InstanceStarted { agent: agent.clone() })
                        .await;
                }
            }
            let reason = "user-requested".to_owned();
            out.send(&AgentEvent::InstanceTerminated { agent, reason }).await;
        });
        Ok(sender)
    }

    fn info(&self, id: AgentId, address: SocketAddr) -> AgentInfo {
        let mut slot_types = SlotTypes::intrinsic();
        for (name, _) in self.slots.iter() {
            if slot_types.unit(name).is_none() {
                slot_types.insert(name, bai_model::SlotUnit::guess(name));
            }
        }
        let image = |(canonical, digest): &(String, String)| InstalledImage {
            repo_tag: canonical.clone(),
            id: digest.clone(),
        };
        AgentInfo {
            id,
            region: self.region.clone(),
            addr: format!("tcp://{address}"),
            version: "19.06.0b1".to_owned(),
            available_slots: self.slots.clone(),
            slot_types,
            compute_plugins: json!({ "cpu": { "version": "1" }, "mem": { "version": "1" } }),
            images: Vec::new(),
            installed: self.images.iter().map(image).collect(),
        }
    }
}

impl Simulated {
    /// Waits until the manager has taken every agent's connection.
    pub async fn connected(&self) {
        for agent in &self.agents {
            agent.connected().await;
        }
    }

    /// Lets all agents leave in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        let flushed = async {
            for agent in &self.agents {
                agent.flushed().await;
            }
        };
        // A manager that is gone does not need to know.
        _ = tokio::time::timeout(FLUSH, flushed).await;
    }
}

/// Ports in turn.
#[derive(Debug)]
struct Ports(AtomicU16);

impl Default for Ports {
    fn default() -> Self {
        Self(AtomicU16::new(PORTS.start))
    }
}

impl Ports {
    fn next(&self) -> u16 {
        let following = |port: u16| {
            if port + 1 < PORTS.end {
                port + 1
            } else {
                PORTS.start
            }
        };
        let order = Ordering::Relaxed;
        // Always succeeds.
        let taken = self.0.fetch_update(order, order, |port| Some(following(port)));
        taken.unwrap_or(PORTS.start)
    }
}

/// One agent, as far as it is called.
#[derive(Debug)]
struct SimulatedAgent {
    kernels: Mutex<HashSet<KernelId>>,
    ports: Arc<Ports>,
    events: mpsc::Sender<AgentEvent>,
    creations: Option<Arc<File>>,
}

impl SimulatedAgent {
    fn kernels(&self) -> MutexGuard<'_, HashSet<KernelId>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an agent of 19.06 says of a kernel that it does not have.
    fn expect(&self, kernel: KernelId) -> Result<(), AgentError> {
        if self.kernels().contains(&kernel) {
            Ok(())
        } else {
            Err(AgentError::exception("KeyError", kernel.to_string()))
        }
    }

    fn created(&self, kernel: KernelId) -> KernelCreated {
        let mut ports = std::iter::repeat_with(|| self.ports.next());
        let mut port = || ports.next().unwrap_or(PORTS.start);
        KernelCreated {
            kernel_host: None,
            repl_in_port: port(),
            repl_out_port: port(),
            stdin_port: port(),
            stdout_port: port(),
            service_ports: Vec::new(),
            container_id: format!("{0}{0}", kernel.0.simple()),
        }
    }

    async fn tell(&self, event: AgentEvent) {
        // Nobody takes events of an agent that is leaving.
        _ = self.events.send(event).await;
    }

    async fn end(&self, kernel: KernelId, reason: &str) {
        let reason = reason.to_owned();
        self.tell(AgentEvent::KernelTerminated {
            kernel,
            reason,
            generation: None,
            stats: None,
        })
        .await;
    }
}

#[async_trait]
impl AgentRpc for SimulatedAgent {
    async fn create_kernel(
        &self,
        kernel: KernelId,
        _config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        if let Some(mut creations) = self.creations.as_deref() {
            let line = format!("{}\n", SystemClock.now().timestamp_micros());
            if let Err(error) = creations.write_all(line.as_bytes()) {
                tracing::warn!(%error, "the time of a creation could not be written down");
            }
        }
        self.kernels().insert(kernel);
        for event in [
            AgentEvent::KernelPreparing { kernel },
            AgentEvent::KernelCreating { kernel },
            AgentEvent::KernelStarted { kernel },
        ] {
            self.tell(event).await;
        }
        Ok(self.created(kernel))
    }

    async fn destroy_kernel(&self, kernel: KernelId) -> Result<Option<Value>, AgentError> {
        self.kernels().remove(&kernel);
        self.end(kernel, "user-requested").await;
        Ok(None)
    }

    async fn restart_kernel(
        &self,
        kernel: KernelId,
        _config: KernelConfig,
    ) -> Result<KernelCreated, AgentError> {
        self.expect(kernel)?;
        self.end(kernel, "restarting").await;
        Ok(self.created(kernel))
    }

    /// Every run prints its code and is over.
    async fn execute(
        &self,
        kernel: KernelId,
        request: ExecuteRequest,
    ) -> Result<Option<ExecuteReply>, AgentError> {
        self.expect(kernel)?;
        let console = match request.mode {
            ExecuteMode::Query => vec![ConsoleItem::Stdout(request.code)],
            _ => Vec::new(),
        };
        Ok(Some(ExecuteReply {
            run_id: request.run_id.unwrap_or_else(|| RunId("simulated".to_owned())),
            status: RunStatus::Finished,
            exit_code: Some(0),
            options: None,
            console,
            files: Vec::new(),
        }))
    }

    async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.expect(kernel)
    }

    async fn get_completions(
        &self,
        kernel: KernelId,
        _code: String,
        _options: Value,
    ) -> Result<Vec<String>, AgentError> {
        self.expect(kernel).map(|()| Vec::new())
    }

    async fn get_logs(&self, kernel: KernelId) -> Result<String, AgentError> {
        self.expect(kernel).map(|()| String::new())
    }

    async fn upload_file(&self, kernel: KernelId, _path: String, _data: Bytes) -> Result<(), AgentError> {
        self.expect(kernel)
    }

    async fn download_file(&self, kernel: KernelId, path: String) -> Result<Bytes, AgentError> {
        self.expect(kernel)?;
        let missing = format!("Could not found the file: {path}");
        Err(AgentError::exception("FileNotFoundError", missing))
    }

    async fn list_files(&self, kernel: KernelId, path: String) -> Result<FileListing, AgentError> {
        self.expect(kernel).map(|()| FileListing {
            files: "[]".to_owned(),
            errors: String::new(),
            abspath: Some(format!("/home/work/{}\n", path.trim_start_matches('/'))),
        })
    }

    async fn refresh_idle(&self, kernel: KernelId) -> Result<(), AgentError> {
        self.expect(kernel)
    }

    async fn start_service(
        &self,
        kernel: KernelId,
        service: String,
        _options: Value,
    ) -> Result<ServiceStart, AgentError> {
        self.expect(kernel)?;
        Ok(ServiceStart::Failed(format!("{service} is not simulated")))
    }

    /// Agents of 19.06 do not say it.
    async fn list_kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        Err(AgentError::not_provided("list_kernels"))
    }

    async fn reset_agent(&self) -> Result<(), AgentError> {
        let ended: Vec<KernelId> = self.kernels().drain().collect();
        for kernel in ended {
            self.end(kernel, "agent-reset").await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bai_proto::event::{EventReceiver, Received, ReceiverOptions};
    use bai_proto::rpc::{AgentOptions, ZmqAgent};

    use super::*;

    fn query(code: &str) -> ExecuteRequest {
        ExecuteRequest {
            run_id: None,
            mode: ExecuteMode::Query,
            code: code.to_owned(),
            batch: Default::default(),
            flush_timeout: None,
        }
    }

    async fn next(received: &mut mpsc::Receiver<Received>) -> (String, AgentEvent) {
        let waited = tokio::time::timeout(Duration::from_secs(30), received.recv()).await;
        let Received { agent, event, .. } = waited.expect("in time").expect("an event");
        (agent.0, event)
    }

    #[tokio::test]
    async fn they_register_answer_and_leave() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let receiver = EventReceiver::bind(address, ReceiverOptions::default()).await;
        let receiver = receiver.expect("a port");
        let address = receiver.local_addr().expect("its address");
        let (events, mut received) = mpsc::channel(100);
        let stop = CancellationToken::new();
        let hearing = tokio::spawn(receiver.run(events, stop.clone()));
        let simulation = Simulation {
            manager: format!("tcp://{address}").parse().expect("an endpoint"),
            listen: "127.0.0.1".parse().expect("an address"),
            prefix: "i-test-".to_owned(),
            region: "local".to_owned(),
            slots: ResourceSlot::from_stored(&json!({ "cpu": "4", "mem": "1024" })).0,
            images: vec![("index.docker.io/a/b:1".to_owned(), "sha256:0".to_owned())],
            // So long that only the first one is heard.
            beat: Duration::from_secs(3600),
            creations: None,
        };
        let agents = simulation.start(1).await.expect("agents");
        agents.connected().await;
        let (name, event) = next(&mut received).await;
        let AgentEvent::InstanceHeartbeat(info) = event else {
            panic!("{event:?}")
        };
        assert_eq!(
            (name.as_str(), info.id.0.as_str()),
            ("i-test-0001", "i-test-0001")
        );
        assert_eq!(info.available_slots, simulation.slots);
        assert_eq!(info.installed.len(), 1);
        assert!(matches!(
            next(&mut received).await.1,
            AgentEvent::InstanceStarted { .. }
        ));

        let options = AgentOptions {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            tls: None,
        };
        let agent = ZmqAgent::connect(info.addr.parse().expect("an endpoint"), options);
        let kernel = KernelId::generate(&SystemRandom);
        let unknown = agent.execute(kernel, query("1")).await.expect_err("no kernel");
        assert!(unknown.repr().starts_with("KeyError"), "{unknown}");
        let config = KernelConfig {
            image: Default::default(),
            resource_slots: simulation.slots.clone(),
            idle_timeout: 0,
            mounts: Vec::new(),
            environ: Default::default(),
        };
        let created = agent.create_kernel(kernel, config).await.expect("a kernel");
        assert_ne!(created.repl_in_port, created.repl_out_port);
        let reply = agent.execute(kernel, query("print 1")).await.expect("a run");
        let reply = reply.expect("a reply");
        assert_eq!(reply.console, [ConsoleItem::Stdout("print 1".to_owned())]);
        assert!(
            agent
                .list_kernels()
                .await
                .expect_err("as in 19.06")
                .is_not_provided()
        );
        agent.destroy_kernel(kernel).await.expect("an end");
        for _ in 0..3 {
            next(&mut received).await;
        }
        let (_, ended) = next(&mut received).await;
        assert!(
            matches!(&ended, AgentEvent::KernelTerminated { kernel: of, .. } if *of == kernel),
            "{ended:?}"
        );
        agents.stop().await;
        let (_, left) = next(&mut received).await;
        assert!(matches!(left, AgentEvent::InstanceTerminated { .. }), "{left:?}");
        stop.cancel();
        hearing.await.expect("an end");
    }
}
