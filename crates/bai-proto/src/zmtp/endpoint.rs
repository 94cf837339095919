//! Where a peer is, and how to get there.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bai_model::random::Random;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::codec::{Limits, SocketType, ZmtpError};
use super::connection::Connection;
use super::tls::{Tls, TlsError};

/// How long making a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// A peer whose host is gone, which TCP alone notices after a quarter of an hour, is given up after about this long.
const DEAD_PEER: Duration = Duration::from_secs(30);

/// `tcp://host:port`, as agents write it into heartbeats (`agent-protocol.md` 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no endpoint of the form tcp://host:port")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || EndpointError(text.chars().take(100).collect());
        let rest = text.strip_prefix("tcp://").ok_or_else(error)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(error)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || host.len() > 255 || !host.chars().all(is_name) {
            return Err(error());
        }
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "tcp://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "tcp://{}:{}", self.host, self.port)
        }
    }
}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{0} does not answer")]
    Timeout(Endpoint),
    #[error("{0} cannot be reached: {1}")]
    Unreachable(Endpoint, std::io::Error),
    #[error("{0} is not trusted: {1}")]
    Tls(Endpoint, TlsError),
    #[error("{0} cannot be talked to: {1}")]
    Zmtp(Endpoint, ZmtpError),
}

/// Connects once.
///
/// # Errors
/// When nobody is there, or somebody else.
pub async fn dial(
    endpoint: &Endpoint,
    ours: SocketType,
    limits: Limits,
    tls: Option<&Tls>,
) -> Result<Connection, DialError> {
    let connecting = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let stream = tokio::time::timeout(CONNECT, connecting)
        .await
        .map_err(|_| DialError::Timeout(endpoint.clone()))?;
    let unreachable = |error| DialError::Unreachable(endpoint.clone(), error);
    let stream = stream.map_err(unreachable)?;
    let peer = stream.peer_addr().map_err(unreachable)?;
    tune(&stream);
    let established = match tls {
        Some(tls) => {
            let stream = tls
                .connect(&endpoint.host, stream)
                .await
                .map_err(|error| DialError::Tls(endpoint.clone(), error))?;
            Connection::establish(stream, peer, ours, limits).await
        }
        None => Connection::establish(stream, peer, ours, limits).await,
    };
    established.map_err(|error| DialError::Zmtp(endpoint.clone(), error))
}

/// Small messages go at once, and a dead host is noticed. What the system refuses is done without.
pub(super) fn tune(stream: &TcpStream) {
    _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(DEAD_PEER / 3)
        .with_interval(DEAD_PEER / 6)
        .with_retries(4);
    _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(DEAD_PEER));
    }
}

/// How long to wait before the next attempt to connect: twice as long each time, up to a limit, and never the same for
/// all that lost the same peer.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(3);

    pub fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// The next pause.
    pub fn pause(&mut self, random: &dyn Random) -> Duration {
        let mut byte = [0];
        random.fill(&mut byte);
        let pause = self.next.mul_f64(0.5 + f64::from(byte[0]) / 512.0);
        self.next = (self.next * 2).min(Self::LAST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for text in [
            "tcp://127.0.0.1:6001",
            "tcp://node-1.example:1",
            "tcp://[::1]:6001",
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:65536",
            "tcp://:1",
            "udp://h:1",
            "tcp://a b:1",
            "inproc://x",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
