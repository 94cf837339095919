//! An etcd server: one member, with short elections.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::server::Server;
use super::{Missing, find_program};

/// The password of the user `root`, once [`Etcd::enable_auth`] was called.
pub const PASSWORD: &str = "not-a-secret";

/// A server that nobody else uses.
#[derive(Debug)]
pub struct Etcd {
    program: String,
    server: Server,
}

impl Etcd {
    /// Starts a server.
    ///
    /// # Errors
    /// [`Missing`] when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    pub fn start() -> Result<Self, Missing> {
        let program = find_program("etcd", &[])?.display().to_string();
        let started = Server::start("etcd", |server| command(&program, server), is_ready);
        let server = started.unwrap_or_else(|error| panic!("{error:#}"));
        Ok(Self { program, server })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port)
    }

    /// Ends the process at once. Its data stays.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Starts it after [`Etcd::kill`], at the same address, with its data.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        let started = self
            .server
            .start_again(&command(&self.program, &self.server), is_ready);
        started.unwrap_or_else(|error| panic!("etcd does not start again: {error:#}"));
    }

    /// Forgets everything. To be called after [`Etcd::kill`].
    ///
    /// # Panics
    /// When the data cannot be removed.
    pub fn wipe(&self) {
        fs::remove_dir_all(self.server.folder.join("data")).expect("remove the data");
    }

    /// Nothing is answered any more; connections stay.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Forgets the history before a revision: watches that would need it are cancelled.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn compact(&self, revision: i64) {
        let body = format!(r#"{{"revision": "{revision}", "physical": true}}"#);
        self.post("/v3/kv/compaction", &body).expect("compact");
    }

    /// From now on a user and a password are needed: `root` and [`PASSWORD`].
    ///
    /// # Panics
    /// When the server refuses.
    pub fn enable_auth(&self) {
        let user = format!(r#"{{"name": "root", "password": "{PASSWORD}"}}"#);
        for (path, body) in [
            ("/v3/auth/user/add", user.as_str()),
            ("/v3/auth/role/add", r#"{"name": "root"}"#),
            ("/v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#),
            ("/v3/auth/enable", "{}"),
        ] {
            self.post(path, body).expect("enable authentication");
        }
    }

    fn post(&self, path: &str, body: &str) -> Result<String> {
        ask(self.server.port, "POST", path, body)
    }
}

fn command(program: &str, server: &Server) -> Vec<String> {
    let data = server.folder.join("data");
    let client = format!("http://127.0.0.1:{}", server.port);
    // Nobody connects to a single member's peer address; port 0 is one that nobody has.
    let peer = "http://127.0.0.1:0";
    let mut command = vec![program.to_owned(), format!("--data-dir={}", data.display())];
    command.extend([
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        "--heartbeat-interval=20".to_owned(),
        "--election-timeout=200".to_owned(),
        "--log-level=warn".to_owned(),
    ]);
    command
}

fn is_ready(server: &Server) -> bool {
    ask(server.port, "GET", "/health", "").is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// One request of HTTP, by hand: this crate's servers need no client library.
fn ask(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().context("no answer")?;
    ensure!(status.contains(" 200 "), "{path}: {answer}");
    Ok(answer)
}
