//! What systemd is told (`sd_notify(3)`): that the service is ready, that it stops, and that it lives.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Environment;

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How long the service manager waits for a sign of life.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As `NOTIFY_SOCKET` and `WATCHDOG_USEC` say.
    pub fn new(environment: &Environment) -> Self {
        let socket = environment.get("NOTIFY_SOCKET").and_then(|address| {
            let socket = connect(address);
            if let Err(error) = &socket {
                tracing::warn!(%error, "the service manager cannot be told anything (NOTIFY_SOCKET)");
            }
            socket.ok()
        });
        let is_ours = environment
            .get("WATCHDOG_PID")
            .is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = environment
            .get("WATCHDOG_USEC")
            .filter(|_| is_ours)
            .and_then(|microseconds| microseconds.parse().ok())
            .filter(|microseconds| *microseconds > 0)
            .map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// Requests are answered.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// What the daemon does at the moment.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=letting running requests end");
    }

    /// Shows signs of life until the guard is dropped, if they are asked for. They come from the threads that serve requests.
    #[must_use]
    pub fn keep_alive(self: &Arc<Self>) -> DropGuard {
        let (stopping, notifier) = (CancellationToken::new(), Arc::clone(self));
        let guard = stopping.clone().drop_guard();
        tokio::spawn(async move { notifier.show_life(stopping).await });
        guard
    }

    async fn show_life(&self, stopping: CancellationToken) {
        let Some(period) = self.watchdog.filter(|_| self.socket.is_some()) else {
            return;
        };
        while !stopping.is_cancelled() {
            self.tell("WATCHDOG=1");
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(period / 2) => {}
            }
        }
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::debug!(%error, state, "the service manager could not be told");
        }
    }
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A service manager that does not read must not hold us up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("bai-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        for (received, address) in [
            (UnixDatagram::bind(&path), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name), format!("@{name}")),
        ] {
            let received = received.expect("a socket");
            let environment = [("NOTIFY_SOCKET".to_owned(), address)].into_iter().collect();
            let notifier = Notifier::new(&environment);
            notifier.ready("serving");
            let mut text = [0; 64];
            let length = received.recv(&mut text).expect("a message");
            assert_eq!(&text[..length], b"READY=1\nSTATUS=serving");
        }
    }

    #[tokio::test]
    async fn signs_of_life_come_when_they_are_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let received = UnixDatagram::bind(&path).expect("a socket");
        let environment = [
            ("NOTIFY_SOCKET", path.display().to_string()),
            ("WATCHDOG_USEC", "2000".to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        let notifier = Notifier::new(&environment.into_iter().collect());
        let stopping = CancellationToken::new();
        let alive = notifier.show_life(stopping.clone());
        let watch = async {
            let read = tokio::task::spawn_blocking(move || {
                let mut text = [0; 64];
                for _ in 0..3 {
                    let length = received.recv(&mut text).expect("a message");
                    assert_eq!(&text[..length], b"WATCHDOG=1");
                }
            });
            read.await.expect("three signs");
            stopping.cancel();
        };
        tokio::join!(alive, watch);
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        Notifier::new(&Environment::default()).ready("serving");
    }
}
