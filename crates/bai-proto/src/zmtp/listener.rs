//! Connections that others make.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::codec::{Limits, SocketType};
use super::connection::Connection;
use super::endpoint::tune;
use super::owner;
use super::tls::Tls;

/// Pause after the system had no more descriptors or memory for a connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Who may connect: the addresses in the list, everybody if it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    networks: Vec<IpNet>,
    /// Of this host, only processes of this user and of root.
    user: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a network such as 10.0.0.0/8")]
pub struct AllowListError(String);

impl AllowList {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// The first text that is neither.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, AllowListError> {
        let network = |text: T| {
            let text = text.as_ref().trim();
            let parsed = IpNet::from_str(text).or_else(|_| IpAddr::from_str(text).map(IpNet::from));
            parsed.map_err(|_| AllowListError(text.to_owned()))
        };
        let networks = texts.into_iter().map(network).collect::<Result<_, _>>()?;
        Ok(Self { networks, user: None })
    }

    /// The same, but of what connects from this host's loopback only processes of one user and of root: its other users have
    /// the same address.
    #[must_use]
    pub fn only_user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Whether a connection that was accepted may stay.
    pub fn admits_connection(&self, stream: &TcpStream, peer: SocketAddr) -> bool {
        let is_theirs = |user: u32| {
            let owner = stream
                .local_addr()
                .ok()
                .and_then(|local| owner::uid_of(peer, local));
            owner.is_some_and(|owner| owner == user || owner == 0)
        };
        let is_local = peer.ip().to_canonical().is_loopback();
        self.admits(peer.ip()) && (!is_local || self.user.is_none_or(is_theirs))
    }

    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// Who may connect, and how.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    pub allow: AllowList,
    /// More connections than this wait until one ends.
    pub max_peers: usize,
    pub limits: Limits,
    pub tls: Option<Tls>,
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    ours: SocketType,
    options: Arc<ListenerOptions>,
}

impl Listener {
    /// Binds `address`, and warns when anybody could read along.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, ours: SocketType, options: ListenerOptions) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let address = tcp.local_addr()?;
        if options.tls.is_none() && !is_private(address.ip()) {
            tracing::warn!(
                listen.addr = %address,
                "whoever reaches this address can read and forge what agents and managers tell each other; \
                 listen on a private address or turn tls on"
            );
        }
        Ok(Self {
            tcp,
            ours,
            options: Arc::new(options),
        })
    }

    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Accepts until `stop`, and then waits for `serve` to end everywhere. `serve` runs once for each connection, in a task
    /// of its own; it must end when the connection or `stop` does.
    pub async fn run<F, Fut>(self, stop: &CancellationToken, serve: F)
    where
        F: Fn(Connection) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let tracker = TaskTracker::new();
        let places = Arc::new(Semaphore::new(self.options.max_peers));
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.tcp.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, peer)) if self.options.allow.admits_connection(&stream, peer) => {
                    let (options, ours, serve) = (Arc::clone(&self.options), self.ours, serve.clone());
                    let stop = stop.clone();
                    tracker.spawn(async move {
                        let _place = place;
                        let established = stop
                            .run_until_cancelled(establish(stream, peer, ours, &options))
                            .await;
                        if let Some(Some(connection)) = established {
                            serve(connection).await;
                        }
                    });
                }
                Ok((_, peer)) => {
                    tracing::warn!(peer.addr = %peer, "a connection was refused: its address or its user is not on the allow-list");
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
        drop(self.tcp);
        tracker.close();
        tracker.wait().await;
    }
}

async fn establish(
    stream: TcpStream,
    peer: SocketAddr,
    ours: SocketType,
    options: &ListenerOptions,
) -> Option<Connection> {
    tune(&stream);
    let established = match &options.tls {
        None => Connection::establish(stream, peer, ours, options.limits).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Connection::establish(stream, peer, ours, options.limits).await,
            Err(error) => {
                tracing::warn!(peer.addr = %peer, %error, "a connection was refused");
                return None;
            }
        },
    };
    match established {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!(peer.addr = %peer, %error, "a connection was refused");
            None
        }
    }
}

/// Loopback, and the networks that are not routed in public. The unspecified address is every address of the host.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_allow_list_admits_all_and_another_only_its_own() {
        let address = |text: &str| text.parse::<IpAddr>().expect(text);
        assert!(AllowList::default().admits(address("203.0.113.9")));
        let list = AllowList::parse(["10.0.0.0/8", "192.0.2.7", "fd00::/8"]).expect("a list");
        for text in ["10.1.2.3", "192.0.2.7", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(list.admits(address(text)), "{text}");
        }
        for text in ["11.0.0.1", "192.0.2.8", "::1"] {
            assert!(!list.admits(address(text)), "{text}");
        }
        assert!(AllowList::parse(["10.0.0.0/33"]).is_err());
    }

    #[test]
    fn addresses_that_all_can_reach_are_public() {
        let private = |text: &str| is_private(text.parse().expect(text));
        assert!(private("127.0.0.1") && private("10.0.0.1") && private("::1"));
        assert!(!private("0.0.0.0") && !private("::") && !private("203.0.113.9"));
    }
}
