//! A scripted agent on another host, as far as a manager can tell: it is called and tells over ZeroMQ.

use std::net::SocketAddr;
use std::sync::Arc;

use bai_model::AgentId;
use bai_proto::agent::AgentRpc;
use bai_proto::event::{AgentEvent, AgentInfo, EventSender};
use bai_proto::rpc::{RpcServer, ServerOptions};
use bai_proto::zmtp::{Endpoint, Limits, LinkOptions};
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
        let endpoint: Endpoint = format!("tcp://{events}").parse().expect("an endpoint");
        let link = LinkOptions {
            // Nothing comes back.
            limits: Limits {
                frames: 1,
                bytes: 1024,
            },
            tls: None,
            random,
        };
        let id = AgentId::from(id);
        Self {
            info: AgentInfo {
                id: id.clone(),
                addr: format!("tcp://{address}"),
                ..FakeAgent::info()
            },
            sender: EventSender::connect(id, endpoint, link),
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
}
