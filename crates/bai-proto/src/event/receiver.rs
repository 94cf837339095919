//! A manager's end of the events: a PULL that many agents push to (`agent-protocol.md` 3.1, 8.2).
//!
//! Invariants: the events of one connection come out in their order; a malformed event changes nothing. With
//! [`ReceiverOptions::check_sources`] an agent is bound to the address that its events come from, for as long as they come,
//! and a heartbeat may only name an RPC address on the host that sent it. In any case it may name none where no other host's
//! agent can be: this host itself, or what is special on its network, as the services that clouds have for their machines.
//!
//! Not here: whether a kernel is the agent's own, which the records say.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bai_model::AgentId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{AgentEvent, EventError, decode};
use crate::zmtp::{
    AllowList, Command, Connection, Endpoint, Incoming, Limits, Listener, ListenerOptions, Message,
    SocketType, Tls, ZmtpError,
};

/// A heartbeat with its list of images is the large one.
const LIMITS: Limits = Limits {
    frames: 8,
    bytes: 16 << 20,
};
/// After so long without an event an agent may come from another address: ten heartbeats.
const BINDING: Duration = Duration::from_secs(30);
/// From so many agents on, those that were not heard of are forgotten.
const FORGET_FROM: usize = 10_000;
/// How long a host's name may take to be resolved.
const RESOLUTION: Duration = Duration::from_secs(2);

/// Who may send events.
#[derive(Clone, Debug)]
pub struct ReceiverOptions {
    pub allow: AllowList,
    pub tls: Option<Tls>,
    /// Connections at the same time: one for each agent.
    pub max_peers: usize,
    /// Whether events must come from where they say. To be turned off where agents reach the manager from other addresses than
    /// those under which they are called, as through NAT; what does not agree is logged then.
    pub check_sources: bool,
}

impl Default for ReceiverOptions {
    /// Everybody may send, without encryption, as in 19.06, but only of itself.
    fn default() -> Self {
        Self {
            allow: AllowList::default(),
            tls: None,
            max_peers: 4096,
            check_sources: true,
        }
    }
}

/// An event, who sent it, and from where.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub agent: AgentId,
    pub peer: SocketAddr,
    pub event: AgentEvent,
}

/// A bound receiver, to be run.
#[derive(Debug)]
pub struct EventReceiver {
    listener: Listener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    check_sources: bool,
    /// Where agents were last heard from.
    sources: Mutex<HashMap<AgentId, (IpAddr, Instant)>>,
}

/// Why an event is refused though it is well formed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Malformed(#[from] EventError),
    #[error(
        "agent {agent} is heard from {known} at the same time; if two hosts have the same agent id, rename one, and if \
         one host has several addresses, turn the check of sources off"
    )]
    OtherSource { agent: AgentId, known: IpAddr },
    #[error(
        "agent {agent} wants to be called at {addr}, which is another host; if agents come through address \
         translation, turn the check of sources off"
    )]
    PointsElsewhere { agent: AgentId, addr: String },
    #[error("agent {agent} wants to be called at {addr}, where no agent of another host can be")]
    PointsInside { agent: AgentId, addr: String },
}

impl EventReceiver {
    /// Binds the address, whose port may be 0.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn bind(address: SocketAddr, options: ReceiverOptions) -> io::Result<Self> {
        let listener = ListenerOptions {
            allow: options.allow,
            max_peers: options.max_peers,
            limits: LIMITS,
            tls: options.tls,
            is_shared: true,
        };
        Ok(Self {
            listener: Listener::bind(address, SocketType::Pull, listener).await?,
            shared: Arc::new(Shared {
                check_sources: options.check_sources,
                sources: Mutex::default(),
            }),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Receives into `events` until `stop`. While the channel is full, agents wait.
    pub async fn run(self, events: mpsc::Sender<Received>, stop: CancellationToken) {
        let shared = self.shared;
        let serve = {
            let stop = stop.clone();
            move |connection: Connection| {
                let (shared, events, stop) = (Arc::clone(&shared), events.clone(), stop.clone());
                async move {
                    let peer = connection.peer;
                    match stop.run_until_cancelled(shared.serve(connection, events)).await {
                        None | Some(Ok(())) => {}
                        Some(Err(ZmtpError::Io(error))) => {
                            tracing::debug!(peer.addr = %peer, %error, "a connection for events broke");
                        }
                        Some(Err(error)) => {
                            tracing::warn!(peer.addr = %peer, %error, "a connection for events is closed");
                        }
                    }
                }
            }
        };
        self.listener.run(&stop, serve).await;
    }
}

impl Shared {
    async fn serve(&self, connection: Connection, events: mpsc::Sender<Received>) -> Result<(), ZmtpError> {
        let Connection {
            mut reader,
            mut writer,
            peer,
            ..
        } = connection;
        let mut refused = 0_u64;
        // The address that the last heartbeat had, when it was right.
        let mut checked_addr = String::new();
        while let Some(incoming) = reader.next().await? {
            let message = match incoming {
                Incoming::Message(message) => message,
                Incoming::Command(Command::Ping { context }) => {
                    writer.pong(&context).await?;
                    continue;
                }
                Incoming::Command(_) => continue,
            };
            match self.admit(message, peer, &mut checked_addr).await {
                Ok(received) => {
                    if events.send(received).await.is_err() {
                        return Ok(());
                    }
                }
                Err(Refusal::Malformed(EventError::Unknown(name))) => {
                    tracing::debug!(peer.addr = %peer, name, "an unknown event is ignored");
                }
                // One line for each connection, so that nobody fills the log.
                Err(refusal) => {
                    if refused == 0 {
                        tracing::warn!(peer.addr = %peer, error = %refusal, "events are refused");
                    }
                    refused += 1;
                }
            }
        }
        if refused > 1 {
            tracing::warn!(peer.addr = %peer, refused, "a peer whose events were refused left");
        }
        Ok(())
    }

    async fn admit(
        &self,
        message: Message,
        peer: SocketAddr,
        checked_addr: &mut String,
    ) -> Result<Received, Refusal> {
        let (agent, event) = decode(&message)?;
        if let AgentEvent::InstanceHeartbeat(info) = &event
            && info.addr != *checked_addr
        {
            let whose = whose(&info.addr, peer.ip()).await;
            if whose != Whose::Senders {
                let addr = info.addr.clone();
                if self.check_sources {
                    return Err(Refusal::PointsElsewhere { agent, addr });
                }
                if whose == Whose::Nobodys {
                    return Err(Refusal::PointsInside { agent, addr });
                }
                tracing::warn!(
                    peer.addr = %peer, agent.id = %agent, addr,
                    "an agent wants to be called at another host than the one that its events come from"
                );
            }
            checked_addr.clone_from(&info.addr);
        }
        if self.check_sources {
            let last = matches!(event, AgentEvent::InstanceTerminated { .. });
            self.bind_to(&agent, peer.ip().to_canonical(), last)?;
        }
        Ok(Received { agent, peer, event })
    }

    /// Binds the agent to where its event came from; frees it with its `last` one.
    fn bind_to(&self, agent: &AgentId, source: IpAddr, last: bool) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let is_bound = |heard: Instant| now.duration_since(heard) < BINDING;
        match sources.get(agent) {
            Some((known, heard)) if *known != source && is_bound(*heard) => {
                return Err(Refusal::OtherSource {
                    agent: agent.clone(),
                    known: *known,
                });
            }
            None if sources.len() >= FORGET_FROM => sources.retain(|_, (_, heard)| is_bound(*heard)),
            _ => {}
        }
        if last {
            sources.remove(agent);
        } else {
            sources.insert(agent.clone(), (source, now));
        }
        Ok(())
    }
}

/// Where an RPC address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// To the host that named it.
    Senders,
    /// To another one, or nobody knows where.
    Others,
    /// Where no agent of another host can be.
    Nobodys,
}

/// Where an RPC address leads that the host at `source` named.
async fn whose(addr: &str, source: IpAddr) -> Whose {
    let source = source.to_canonical();
    let Ok(endpoint) = addr.parse::<Endpoint>() else {
        return Whose::Nobodys;
    };
    let addresses: Vec<IpAddr> = match endpoint.host.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            let resolving = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
            match tokio::time::timeout(RESOLUTION, resolving).await {
                Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
                _ => Vec::new(),
            }
        }
    };
    let mut addresses = addresses.iter().map(IpAddr::to_canonical);
    if addresses.clone().any(|address| address == source) {
        Whose::Senders
    } else if addresses.any(|address| is_special(address) || (address.is_loopback() && !is_here(source))) {
        Whose::Nobodys
    } else {
        Whose::Others
    }
}

/// No host's own address: this network's, a group's, or that of a service of the link.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_unspecified()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            address.is_unspecified() || address.is_unicast_link_local() || address.is_multicast()
        }
    }
}

/// Whether an address is one of this host: nobody else's can be bound. Agents on the manager's own host may say loopback.
fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            check_sources: true,
            sources: Mutex::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_moves_only_after_it_was_silent_or_left() {
        let (shared, agent) = (shared(), AgentId::from("i-node01"));
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        shared.bind_to(&agent, here, false).expect("the first");
        assert!(shared.bind_to(&agent, there, false).is_err());
        tokio::time::advance(BINDING).await;
        shared.bind_to(&agent, there, false).expect("the other is silent");
        assert!(shared.bind_to(&agent, here, false).is_err());
        shared.bind_to(&agent, there, true).expect("the last event");
        shared.bind_to(&agent, here, false).expect("it left");
    }

    #[tokio::test]
    async fn an_address_must_be_of_the_sender() {
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        for (addr, source, expected) in [
            ("tcp://127.0.0.1:6001", here, Whose::Senders),
            ("tcp://localhost:6001", here, Whose::Senders),
            ("tcp://10.0.0.1:6001", here, Whose::Others),
            ("tcp://[::ffff:192.0.2.1]:6001", there, Whose::Senders),
            ("tcp://10.0.0.1:6001", there, Whose::Others),
            // Of this host, another of its addresses.
            ("tcp://127.0.0.2:6001", here, Whose::Others),
            ("tcp://127.0.0.1:6001", there, Whose::Nobodys),
            ("tcp://localhost:6001", there, Whose::Nobodys),
            ("tcp://[::1]:6001", there, Whose::Nobodys),
            ("tcp://0.0.0.0:6001", here, Whose::Nobodys),
            ("tcp://224.0.0.1:6001", here, Whose::Nobodys),
            ("tcp://255.255.255.255:6001", here, Whose::Nobodys),
            ("tcp://169.254.169.254:80", here, Whose::Nobodys),
            ("tcp://[fe80::1]:6001", there, Whose::Nobodys),
            ("inproc://x", here, Whose::Nobodys),
        ] {
            assert_eq!(whose(addr, source).await, expected, "{addr} {source}");
        }
    }
}
