//! A Redis server that keeps nothing on disk.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::server::Server;
use super::{Certificates, Missing, find_program};

/// The password of a server that was started with one.
pub const PASSWORD: &str = "not-a-secret";

/// A server that nobody else uses.
#[derive(Debug)]
pub struct Redis {
    /// What it wants, if anything.
    password: Mutex<Option<String>>,
    server: Server,
}

/// What the command line says beside the address.
#[derive(Clone, Debug)]
enum Role {
    Open,
    WithPassword,
    /// Only with TLS: certificate and key.
    Secured(PathBuf, PathBuf),
}

impl Redis {
    /// Starts a server that lets everybody in.
    ///
    /// # Errors
    /// [`Missing`] when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    pub fn start() -> Result<Self, Missing> {
        Self::make(Role::Open)
    }

    /// Starts a server that wants [`PASSWORD`].
    ///
    /// # Errors
    /// As [`Redis::start`].
    ///
    /// # Panics
    /// As [`Redis::start`].
    pub fn start_with_password() -> Result<Self, Missing> {
        Self::make(Role::WithPassword)
    }

    /// Starts a server whose clients need TLS. [`Redis::commands`] cannot reach it.
    ///
    /// # Errors
    /// As [`Redis::start`].
    ///
    /// # Panics
    /// As [`Redis::start`].
    pub fn start_with_tls(certificates: &Certificates) -> Result<Self, Missing> {
        Self::make(Role::Secured(certificates.certificate(), certificates.key()))
    }

    fn make(role: Role) -> Result<Self, Missing> {
        let program = find_program("redis-server", &[])?.display().to_string();
        let is_ready = role.is_ready();
        let password = matches!(role, Role::WithPassword).then(|| PASSWORD.to_owned());
        let started = Server::start("redis", move |server| command(&program, &role, server), is_ready);
        let server = started.unwrap_or_else(|error| panic!("{error:#}"));
        Ok(Self {
            password: Mutex::new(password),
            server,
        })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Ends the process at once, and with it everything that it knew.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Starts it after [`Redis::kill`], at the same address.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        self.server.start_again();
    }

    /// Nothing is answered any more; connections stay.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Carries out commands, one a line, on one connection, and gives the first line of each answer.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn commands(&self, commands: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = commands.iter().map(|&command| command.to_owned()).collect();
        let password = self.password().clone();
        if let Some(password) = &password {
            all.insert(0, format!("AUTH {password}"));
        }
        let answers = say(self.server.port, &all).expect("the server answers");
        answers
            .into_iter()
            .skip(usize::from(password.is_some()))
            .collect()
    }

    /// Wants another password of new connections. A restart forgets it.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn change_password(&self, password: &str) {
        self.commands(&[&format!("CONFIG SET requirepass {password}")]);
        *self.password() = Some(password.to_owned());
    }

    /// Makes it refuse whatever needs memory, as when it has none.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn fill_memory(&self) {
        self.commands(&["CONFIG SET maxmemory 1"]);
    }

    /// Makes it refuse every change, as when its disk is full: what it knows cannot be saved.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn fill_disk(&self) {
        // A file cannot take the place of a folder.
        fs::create_dir(self.snapshot()).expect("a folder");
        self.commands(&["CONFIG SET save \"3600 1\""]);
        self.save_until("-MISCONF");
    }

    /// The end of [`Redis::fill_memory`] and [`Redis::fill_disk`].
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn make_room(&self) {
        self.commands(&["CONFIG SET maxmemory 0"]);
        if fs::remove_dir(self.snapshot()).is_ok() {
            self.save_until("+OK");
            self.commands(&["CONFIG SET save \"\""]);
        }
    }

    /// Saves until a change is answered like this.
    fn save_until(&self, expected: &str) {
        for _ in 0..1500 {
            let answers = self.commands(&["BGSAVE", "SELECT 15", "SET probe 1"]);
            if answers[2].starts_with(expected) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("a change is never answered {expected}");
    }

    fn snapshot(&self) -> PathBuf {
        self.server.folder.join("dump.rdb")
    }

    fn password(&self) -> MutexGuard<'_, Option<String>> {
        self.password.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Role {
    /// One with TLS does not answer us.
    fn is_ready(&self) -> fn(&Server) -> bool {
        match self {
            Self::Open | Self::WithPassword => is_ready,
            Self::Secured(..) => Server::listens,
        }
    }
}

fn command(program: &str, role: &Role, server: &Server) -> Vec<String> {
    let port = server.port.to_string();
    let folder = server.folder.display().to_string();
    let mut words = vec![
        program,
        "--bind",
        "127.0.0.1",
        "--dir",
        &folder,
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    let files: Vec<String>;
    match role {
        Role::Open => words.extend(["--port", &port]),
        Role::WithPassword => words.extend(["--port", &port, "--requirepass", PASSWORD]),
        Role::Secured(certificate, key) => {
            files = [certificate, key].map(|file| file.display().to_string()).into();
            words.extend(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
            words.extend(["--tls-cert-file", &files[0], "--tls-key-file", &files[1]]);
            // Redis wants an authority, which it needs for certificates of clients only.
            words.extend(["--tls-ca-cert-file", &files[0]]);
        }
    }
    words.into_iter().map(str::to_owned).collect()
}

fn is_ready(server: &Server) -> bool {
    say(server.port, &["PING".to_owned()])
        .is_ok_and(|answers| answers[0] == "+PONG" || answers[0].starts_with("-NOAUTH"))
}

/// Inline commands whose answers have one line, or whose further lines nobody needs.
fn say(port: u16, commands: &[String]) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    for command in commands {
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the connection was closed");
        if let Some(length) = line
            .strip_prefix('$')
            .and_then(|length| length.trim().parse::<i64>().ok())
            && length >= 0
        {
            line.clear();
            answers.read_line(&mut line)?;
        }
        lines.push(line.trim_end().to_owned());
    }
    Ok(lines)
}
