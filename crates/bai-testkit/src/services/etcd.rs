//! etcd servers with short elections: one that is a cluster by itself, or several.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::server::Server;
use super::{Certificates, Missing, find_program, free_port};

/// The password of the user `root`, once [`Etcd::enable_auth`] was called.
pub const PASSWORD: &str = "not-a-secret";

/// A server that nobody else uses.
#[derive(Debug)]
pub struct Etcd {
    server: Server,
    /// Of the user `root`, once there is one.
    password: Mutex<Option<String>>,
}

/// What the command line says beside the address.
#[derive(Clone, Debug)]
enum Role {
    Alone,
    /// With room for so many bytes.
    Small(u64),
    /// With TLS towards clients: certificate and key.
    Secured(PathBuf, PathBuf),
    /// A number and the peers' ports of all members.
    Member(usize, Vec<u16>),
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
        let started = Self::make(Role::Alone)?;
        Ok(started.unwrap_or_else(|error| panic!("{error:#}")))
    }

    /// Starts a server whose clients need TLS.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub fn start_with_tls(certificates: &Certificates) -> Result<Self, Missing> {
        let started = Self::make(Role::Secured(certificates.certificate(), certificates.key()))?;
        Ok(started.unwrap_or_else(|error| panic!("{error:#}")))
    }

    /// Starts a server that is full when its data has so many bytes: what it says then is what it says on a full disk.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub fn start_with_room_for(bytes: u64) -> Result<Self, Missing> {
        let started = Self::make(Role::Small(bytes))?;
        Ok(started.unwrap_or_else(|error| panic!("{error:#}")))
    }

    /// Starts three servers that are one cluster.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub fn start_cluster() -> Result<Vec<Self>, Missing> {
        let mut why = String::new();
        // Somebody may take a peer's port before its server does.
        for _ in 0..3 {
            let ports: Vec<u16> = (0..3).filter_map(|_| free_port().ok()).collect();
            let members: Result<Vec<Self>> = (0..ports.len())
                .map(|number| Self::make(Role::Member(number, ports.clone())))
                .collect::<Result<_, Missing>>()?;
            let ready = members.and_then(|members| {
                for member in &members {
                    member.server.wait_until(is_ready)?;
                }
                Ok(members)
            });
            match ready {
                Ok(members) => return Ok(members),
                Err(error) => why = format!("{error:#}"),
            }
        }
        panic!("no cluster of etcd: {why}")
    }

    fn make(role: Role) -> Result<Result<Self>, Missing> {
        let program = find_program("etcd", &[])?.display().to_string();
        let is_ready = role.is_ready();
        let server = Server::start("etcd", move |server| command(&program, &role, server), is_ready);
        Ok(server.map(|server| Self {
            server,
            password: Mutex::default(),
        }))
    }

    /// Whether this member leads its cluster.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn leads(&self) -> bool {
        let status = self.post("/v3/maintenance/status", "{}").expect("the status");
        let leader = text_of(&status, "leader");
        leader.is_some() && leader == text_of(&status, "member_id")
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.server.address()
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
        self.server.start_again();
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

    /// The store's revision.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn revision(&self) -> i64 {
        let answer = self
            .post("/v3/kv/range", r#"{"key": "AA=="}"#)
            .expect("an answer");
        let revision = text_of(&answer, "revision").and_then(|text| text.parse().ok());
        revision.expect("a revision")
    }

    /// Makes room in a server that is full, as an operator does: forgets the history, gives its space back, and disarms
    /// the alarm.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn make_room(&self) {
        self.compact(self.revision());
        self.post("/v3/maintenance/defragment", "{}").expect("defragment");
        let alarm = "/v3/maintenance/alarm";
        let armed = self.post(alarm, r#"{"action": "GET"}"#).expect("the alarms");
        let member = text_of(&armed, "memberID").expect("an alarm");
        let disarm = format!(r#"{{"action": "DEACTIVATE", "memberID": "{member}", "alarm": "NOSPACE"}}"#);
        self.post(alarm, &disarm).expect("disarm the alarm");
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
        *self.password() = Some(PASSWORD.to_owned());
    }

    /// Gives the user `root` another password, after [`Etcd::enable_auth`]. Tokens are worth nothing then.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn change_password(&self, password: &str) {
        let change = format!(r#"{{"name": "root", "password": "{password}"}}"#);
        self.post("/v3/auth/user/changepw", &change)
            .expect("change the password");
        *self.password() = Some(password.to_owned());
    }

    fn post(&self, path: &str, body: &str) -> Result<String> {
        let password = self.password().clone();
        let Some(password) = password else {
            return ask(self.server.port, "POST", path, None, body);
        };
        let log_in = format!(r#"{{"name": "root", "password": "{password}"}}"#);
        let answer = ask(self.server.port, "POST", "/v3/auth/authenticate", None, &log_in)?;
        let token = text_of(&answer, "token").context("no token")?;
        ask(self.server.port, "POST", path, Some(token), body)
    }

    fn password(&self) -> MutexGuard<'_, Option<String>> {
        self.password.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a JSON object that is a text.
fn text_of<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = answer.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split_once('"')?.0)
}

impl Role {
    /// A member is ready only when others are there; one with TLS does not answer us.
    fn is_ready(&self) -> fn(&Server) -> bool {
        match self {
            Self::Alone | Self::Small(_) => is_ready,
            Self::Secured(..) | Self::Member(..) => Server::listens,
        }
    }
}

fn command(program: &str, role: &Role, server: &Server) -> Vec<String> {
    let scheme = if matches!(role, Role::Secured(..)) {
        "https"
    } else {
        "http"
    };
    let client = format!("{scheme}://127.0.0.1:{}", server.port);
    let mut command = vec![
        program.to_owned(),
        format!("--data-dir={}", server.folder.join("data").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        "--heartbeat-interval=20".to_owned(),
        "--election-timeout=200".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    match role {
        // Nobody connects to a single member's peer address; port 0 is one that nobody has.
        Role::Alone => command.push("--listen-peer-urls=http://127.0.0.1:0".to_owned()),
        Role::Small(bytes) => command.extend([
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            format!("--quota-backend-bytes={bytes}"),
        ]),
        Role::Secured(certificate, key) => command.extend([
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            format!("--cert-file={}", certificate.display()),
            format!("--key-file={}", key.display()),
        ]),
        Role::Member(number, ports) => {
            let peer = |number: usize| format!("http://127.0.0.1:{}", ports[number]);
            let all: Vec<String> = (0..ports.len())
                .map(|number| format!("n{number}={}", peer(number)))
                .collect();
            command.extend([
                format!("--name=n{number}"),
                format!("--listen-peer-urls={}", peer(*number)),
                format!("--initial-advertise-peer-urls={}", peer(*number)),
                format!("--initial-cluster={}", all.join(",")),
            ]);
        }
    }
    command
}

fn is_ready(server: &Server) -> bool {
    ask(server.port, "GET", "/health", None, "").is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// One request of HTTP, by hand: this crate's servers need no client library.
fn ask(port: u16, method: &str, path: &str, token: Option<&str>, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let token = token.map(|token| format!("Authorization: {token}\r\n"));
    let (length, token) = (body.len(), token.unwrap_or_default());
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{token}\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().context("no answer")?;
    ensure!(status.contains(" 200 "), "{path}: {answer}");
    Ok(answer)
}
