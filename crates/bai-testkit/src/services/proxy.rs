//! A TCP proxy that can be told to misbehave: to delay, to hold back, to cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Stands between a client and a server on loopback. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    /// Both ends of every connection.
    open: Vec<TcpStream>,
    ended: bool,
}

/// What happens to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Pass,
    /// Each piece waits so long, in both directions.
    Delay(Duration),
    /// Nothing passes; connections stay and new ones are taken.
    Hold,
    /// New connections are closed at once.
    Refuse,
}

impl Proxy {
    /// Stands before `target` (`127.0.0.1:port`), which need not be there.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn start(target: &str) -> Self {
        Self::start_on("127.0.0.1", target)
    }

    /// The same on another address of this host, for clients that do not share its loopback.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    pub fn start_on(host: &str, target: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if acceptor.state().ended {
                    return;
                }
                acceptor.serve(client);
            }
        });
        Self { address, shared }
    }

    /// Where clients connect: `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Everything passes, as at the beginning.
    pub fn pass(&self) {
        self.shared.set(Mode::Pass);
    }

    /// Each piece of data takes so much longer.
    pub fn delay(&self, by: Duration) {
        self.shared.set(Mode::Delay(by));
    }

    /// Nothing passes, and nobody is told.
    pub fn hold(&self) {
        self.shared.set(Mode::Hold);
    }

    /// Closes all connections; new ones are taken.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Closes all connections and every new one at once.
    pub fn refuse(&self) {
        self.shared.set(Mode::Refuse);
        self.shared.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.refuse();
        // Wakes the acceptor, so that it sees the end.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mode: Mode) {
        self.state().mode = mode;
        self.changed.notify_all();
    }

    fn cut(&self) {
        for stream in self.state().open.drain(..) {
            // Closed already: the better.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn serve(self: &Arc<Self>, client: TcpStream) {
        if self.state().mode == Mode::Refuse {
            return;
        }
        // A server that is not there looks like a connection that breaks.
        let Ok(server) = TcpStream::connect(&self.target) else {
            return;
        };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (Ok(from), Ok(to), Ok(kept)) = (from.try_clone(), to.try_clone(), from.try_clone()) else {
                return;
            };
            self.state().open.push(kept);
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length) = from.read(&mut piece) {
            if length == 0 || !self.may_pass() || to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Waits as the mode says; false when the proxy has ended.
    fn may_pass(&self) -> bool {
        let mut state = self.state();
        while state.mode == Mode::Hold && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mode = state.mode;
        let ended = state.ended;
        drop(state);
        if let Mode::Delay(by) = mode {
            thread::sleep(by);
        }
        !ended
    }
}
