//! A PostgreSQL server.
//!
//! Data that need not survive the machine: nothing is flushed to disk, unless that is to be measured. The superuser is `postgres` with the password [`PASSWORD`],
//! needed over TCP and not over the unix socket.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::{Certificates, Guardian, Missing, find_program, free_port, may_mount, tail};

/// The password of the superuser.
pub const PASSWORD: &str = "not-a-secret";
/// How often a server is asked whether it is ready, and how long in all.
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: u32 = 1200;

/// A server with its data in a folder of its own. Dropping it stops it and removes the folder.
#[derive(Debug)]
pub struct Postgres {
    programs: Programs,
    folder: PathBuf,
    port: u16,
    /// Its data is on a disk of so many bytes.
    disk: Option<u64>,
    /// Offers TLS with the certificate and the key in the folder.
    has_tls: bool,
    /// Whether what is committed is flushed to disk.
    is_durable: bool,
    server: Mutex<Option<Guardian>>,
}

/// Mounts a disk for this process and its children alone, copies the data onto it and starts the server: `$0` is its size,
/// user and group, `$1` the data, `$2` where it is to be.
const ON_A_DISK: &str = r#"
set -e
mount -t tmpfs -o "mode=0700,$0" tmpfs "$2"
cp -a "$1/." "$2"
shift 2
exec "$@"
"#;

/// What a server is to be like.
#[derive(Default)]
struct Options<'a> {
    tls: Option<&'a Certificates>,
    disk: Option<u64>,
    is_durable: bool,
}

#[derive(Debug)]
struct Programs {
    initdb: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, Missing> {
        let mut places: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .collect();
        // The newest version first.
        places.sort();
        places.reverse();
        Ok(Self {
            initdb: find_program("initdb", &places)?,
            postgres: find_program("postgres", &places)?,
            psql: find_program("psql", &places)?,
        })
    }
}

impl Postgres {
    /// The server that all tests of this process share; each should use a database of its own. It stops with the
    /// process.
    ///
    /// # Errors
    /// [`Missing`] when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    pub fn shared() -> Result<&'static Self, Missing> {
        static SHARED: OnceLock<Result<Postgres, Missing>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(Clone::clone)
    }

    /// A server that nobody else uses.
    ///
    /// # Errors
    /// [`Missing`] when it is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start.
    pub fn start() -> Result<Self, Missing> {
        let programs = Programs::find()?;
        let started = Self::make(programs, Options::default());
        Ok(started.unwrap_or_else(|error| panic!("PostgreSQL does not start: {error:#}")))
    }

    /// A server that nobody else uses, and that flushes what is committed to disk.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_durable() -> Result<Self, Missing> {
        let programs = Programs::find()?;
        let started = Self::make(
            programs,
            Options {
                is_durable: true,
                ..Options::default()
            },
        );
        Ok(started.unwrap_or_else(|error| panic!("PostgreSQL does not start: {error:#}")))
    }

    /// A server that offers TLS.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with_tls(certificates: &Certificates) -> Result<Self, Missing> {
        let programs = Programs::find()?;
        let started = Self::make(
            programs,
            Options {
                tls: Some(certificates),
                ..Options::default()
            },
        );
        Ok(started.unwrap_or_else(|error| panic!("PostgreSQL does not start: {error:#}")))
    }

    /// A server whose data is on a disk of its own, of so many bytes, which [`Postgres::fill_disk`] fills. What is on it
    /// goes when the server is stopped.
    ///
    /// # Errors
    /// As [`Postgres::start`], and [`Missing`] where no disk can be mounted.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_on_disk_of(bytes: u64) -> Result<Self, Missing> {
        let programs = Programs::find()?;
        may_mount()?;
        let started = Self::make(
            programs,
            Options {
                disk: Some(bytes),
                ..Options::default()
            },
        );
        Ok(started.unwrap_or_else(|error| panic!("PostgreSQL does not start: {error:#}")))
    }

    fn make(programs: Programs, options: Options<'_>) -> Result<Self> {
        let Options {
            tls,
            disk,
            is_durable,
        } = options;
        let folder = TempDir::with_prefix("bai-postgres-")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let owner = Owner::find()?;
        for name in ["data", "socket"] {
            let path = folder.path().join(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            owner.own(&path)?;
        }
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD)?;
        let initdb = owner
            .command(&programs.initdb)
            .args([
                "--username=postgres",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
            ])
            .args(["--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(folder.path().join("data"))
            .current_dir("/")
            .output()?;
        succeeded("initdb", &initdb)?;
        if disk.is_some() {
            fs::rename(folder.path().join("data"), folder.path().join("made"))?;
            fs::create_dir(folder.path().join("data"))?;
        }
        if let Some(certificates) = tls {
            for (from, name) in [
                (certificates.certificate(), "server.pem"),
                (certificates.key(), "server.key"),
            ] {
                let to = folder.path().join(name);
                fs::copy(from, &to)?;
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
                owner.own(&to)?;
            }
        }
        let mut server = Self {
            programs,
            folder: folder.keep(),
            port: 0,
            disk,
            has_tls: tls.is_some(),
            is_durable,
            server: Mutex::new(None),
        };
        for _ in 0..5 {
            server.port = free_port()?;
            if server.start_again().is_ok() {
                return Ok(server);
            }
        }
        bail!("no free port: {}", tail(&server.log()))
    }

    /// Starts the server after [`Postgres::stop`].
    ///
    /// # Errors
    /// When it does not get ready; its log says why.
    pub fn start_again(&self) -> Result<()> {
        let owner = Owner::find()?;
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command: Vec<String> = Vec::new();
        if let Some(bytes) = self.disk {
            let (user, group) = owner.0.unwrap_or_default();
            command.extend(["unshare", "--mount", "sh", "-c", ON_A_DISK].map(str::to_owned));
            command.push(format!("size={bytes},uid={user},gid={group}"));
            command.extend([path("made"), path("data")]);
        }
        command.extend(owner.prefix());
        command.push(self.programs.postgres.display().to_string());
        command.extend(["-D".to_owned(), path("data")]);
        for (name, value) in [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", path("socket")),
            ("max_connections", "200".to_owned()),
            ("fsync", self.is_durable.to_string()),
            ("full_page_writes", self.is_durable.to_string()),
            ("timezone", "Asia/Seoul".to_owned()),
            ("ssl", self.has_tls.to_string()),
            ("ssl_cert_file", path("server.pem")),
            ("ssl_key_file", path("server.key")),
        ] {
            command.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        let guardian = Guardian::start(&command, "QUIT", &self.folder, &self.log())?;
        for _ in 0..PATIENCE {
            if self.psql("postgres", "SELECT 1").is_ok() {
                *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(guardian);
                return Ok(());
            }
            if tail(&self.log()).contains("could not create any TCP/IP sockets") {
                break;
            }
            sleep(POLL);
        }
        guardian.stop();
        bail!("the server is not ready: {}", tail(&self.log()))
    }

    /// Stops the server at once, as a crash would, and leaves its data.
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guardian) = server {
            guardian.stop();
        }
    }

    /// The server's first process, whose children are all others. Not to be had of one with a disk of its own.
    ///
    /// # Errors
    /// While it does not run.
    pub fn process(&self) -> Result<u32> {
        let noted = std::fs::read_to_string(self.folder.join("data/postmaster.pid"))?;
        Ok(noted.lines().next().unwrap_or_default().parse()?)
    }

    /// Fills the disk of a server that was started on one of its own, to the last byte.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn fill_disk(&self) {
        self.run_in_data_folder("cat /dev/zero >ballast 2>/dev/null || true");
    }

    /// Makes room on that disk again.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn make_room(&self) {
        self.run_in_data_folder("rm ballast");
    }

    /// The server's disk is seen by the server only, and its folder is where it runs programs.
    fn run_in_data_folder(&self, script: &str) {
        assert!(self.disk.is_some(), "it has a disk of its own");
        let sql = format!("COPY (SELECT WHERE false) TO PROGRAM '{script}'");
        let answer = self.psql("postgres", &sql);
        answer.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Makes a database, out of the database `template` or empty, that goes when it is dropped.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn database(&self, template: Option<&str>) -> Database<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let template = template.unwrap_or("template0");
        let made = self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        made.unwrap_or_else(|error| panic!("no database: {error:#}"));
        Database { server: self, name }
    }

    /// The address of a database over TCP, with the password.
    pub fn uri(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{PASSWORD}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// The address of a database over the unix socket.
    pub fn socket_uri(&self, database: &str) -> String {
        let socket = self.folder.join("socket").display().to_string();
        format!(
            "postgres://postgres@{}:{}/{database}",
            socket.replace('/', "%2F"),
            self.port
        )
    }

    /// The TCP port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs statements as the superuser and answers what they print, one row a line, columns separated by `|`.
    ///
    /// # Errors
    /// What the server says.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let output = self.client(database, sql).output()?;
        succeeded("psql", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    fn client(&self, database: &str, sql: &str) -> Command {
        let mut psql = Command::new(&self.programs.psql);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"])
            .arg("-h")
            .arg(self.folder.join("socket"))
            .args(["-p", &self.port.to_string(), "-d", database, "-c", sql]);
        psql
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// A database of one test.
#[derive(Debug)]
pub struct Database<'a> {
    server: &'a Postgres,
    name: String,
}

impl Database<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server's address over TCP, `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port)
    }

    /// Its address over TCP, with the password.
    pub fn uri(&self) -> String {
        self.server.uri(&self.name)
    }

    /// Its address over the unix socket.
    pub fn socket_uri(&self) -> String {
        self.server.socket_uri(&self.name)
    }

    /// Runs statements in it and answers what they print.
    ///
    /// # Panics
    /// When one fails.
    pub fn psql(&self, sql: &str) -> String {
        let answer = self.server.psql(&self.name, sql);
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }
}

impl Drop for Database<'_> {
    /// Aside, because the server waits with it for all who are logging in at that moment, anywhere, and the one who drops this
    /// may have such a connection on the thread that it would wait on.
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let mut psql = self.server.client("postgres", &drop);
        // Where it fails, the database goes with its server.
        thread::spawn(move || psql.output());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        // What is left below a folder for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Who runs the server: it refuses to run as root.
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn find() -> Result<Self> {
        if id(&["-u"])? != 0 {
            return Ok(Self(None));
        }
        let name = ["postgres", "nobody"]
            .into_iter()
            .find(|name| id(&["-u", name]).is_ok())
            .context("there is no user postgres or nobody to run the server")?;
        Ok(Self(Some((id(&["-u", name])?, id(&["-g", name])?))))
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        match self.0 {
            Some((user, group)) => chown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }

    fn prefix(&self) -> Vec<String> {
        match self.0 {
            Some((user, group)) => vec![
                "setpriv".to_owned(),
                format!("--reuid={user}"),
                format!("--regid={group}"),
                "--clear-groups".to_owned(),
            ],
            None => Vec::new(),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut words = self.prefix();
        words.push(program.display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(args).output()?;
    succeeded("id", &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "{what} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
