//! A scripted agent on another host, as far as a manager can tell: it is called and tells over ZeroMQ.

use std::net::SocketAddr;
use std::sync::Arc;

use bai_model::AgentId;
use bai_proto::agent::AgentRpc;
use bai_proto::event::{AgentEvent, AgentInfo, EventSender};
use bai_proto::rpc::{RpcServer, ServerOptions};
use bai_proto::zmtp::{Endpoint, Limits, Link, LinkOptions, SocketType};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::FakeAgent;
use crate::ambient::{SeededRandom, WallClock};

/// See the module. It beats when it is told to.
#[derive(Debug)]
pub struct RemoteAgent {
    /// What it says of itself.
    pub info: AgentInfo,
    sender: EventSender,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl RemoteAgent {
    /// An agent of this name that answers calls with `rpc` and tells the manager whose events arrive at `events`.
    pub async fn start(id: &str, events: SocketAddr, rpc: Arc<dyn AgentRpc>) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), id, events, rpc).await
    }

    /// The same at an address that is known already.
    pub async fn start_at(listen: SocketAddr, id: &str, events: SocketAddr, rpc: Arc<dyn AgentRpc>) -> Self {
        let random = Arc::new(SeededRandom::default());
        let options = ServerOptions::new(Arc::new(WallClock), random.clone());
        let server = RpcServer::bind(listen, rpc, options).await.expect("a port");
        let address = server.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let server = tokio::spawn(server.run(stop.clone()));
        let id = AgentId::from(id);
        Self {
            info: AgentInfo {
                id: id.clone(),
                addr: format!("tcp://{address}"),
                ..FakeAgent::info()
            },
            sender: sender(id, events, random),
            stop,
            server,
        }
    }

    /// Sends a heartbeat.
    pub async fn beat(&self) {
        self.tell(AgentEvent::InstanceHeartbeat(self.info.clone())).await;
    }

    /// Sends an event.
    pub async fn tell(&self, event: AgentEvent) {
        self.sender.send(&event).await;
        self.sender.flushed().await;
    }

    /// Is killed: whoever called it hears no more.
    pub async fn kill(self) -> SocketAddr {
        self.stop.cancel();
        self.server.await.expect("a server that ends");
        let endpoint: Endpoint = self.info.addr.parse().expect("an endpoint");
        format!("{}:{}", endpoint.host, endpoint.port)
            .parse()
            .expect("an address")
    }

    /// Tells another manager from now on.
    pub fn turn_to(&mut self, events: SocketAddr) {
        let random = Arc::new(SeededRandom::default());
        self.sender = sender(self.info.id.clone(), events, random);
    }
}

fn sender(id: AgentId, events: SocketAddr, random: Arc<SeededRandom>) -> EventSender {
    let endpoint: Endpoint = format!("tcp://{events}").parse().expect("an endpoint");
    EventSender::connect(id, endpoint, link_options(random))
}

/// Somebody who may send a manager whatever they like.
pub fn stranger(events: SocketAddr) -> Link {
    let endpoint: Endpoint = format!("tcp://{events}").parse().expect("an endpoint");
    let options = link_options(Arc::new(SeededRandom::default()));
    Link::connect(endpoint, SocketType::Push, options)
}

/// For peers that only tell.
pub fn link_options(random: Arc<SeededRandom>) -> LinkOptions {
    LinkOptions {
        // Nothing comes back.
        limits: Limits {
            frames: 1,
            bytes: 1024,
        },
        tls: None,
        random,
    }
}
