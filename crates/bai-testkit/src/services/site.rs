//! A 19.06 site: PostgreSQL, etcd and Redis, filled by the original manager, and a `manager.toml` that the original and
//! ours are started with in turn.
//!
//! The original is the published package in an old Python, which `cargo xtask test` installs below `target/peers/`. Its
//! database schema, its rows and its etcd keys are of its own making: nothing here writes them for it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::postgres::PASSWORD;
use super::{Etcd, Guardian, Missing, Postgres, Redis, end_processes_of, free_port, tail};

/// The schema's last revision, which the published package knows and whose migration it does not bring along.
const HEAD: &str = "c401d78cc7b9";
/// The database and the etcd namespace.
const NAME: &str = "backend";
/// Makes of the original's `schema oneshot` what its migrations make.
const MIGRATED: &str = include_str!("../../../bai-store/tests/original/migrated.sql");
/// How often a manager is asked whether it listens, and how many times in all.
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: u32 = 1200;

/// The services and folders of a site. Dropping it stops and removes everything.
#[derive(Debug)]
pub struct Site {
    pub postgres: Postgres,
    pub etcd: Etcd,
    pub redis: Redis,
    folder: TempDir,
    python: PathBuf,
    port: u16,
}

/// A manager of a site, the original or ours, asked to stop when it is dropped, and waited for.
#[derive(Debug)]
pub struct Running {
    guardian: Option<Guardian>,
    log: PathBuf,
}

impl Site {
    /// Starts the services and has the original make its schema, its rows (`fixture`, a fixture file) and its keys.
    /// Managers get `processes` worker processes or threads.
    ///
    /// # Errors
    /// [`Missing`] when the original or a service is not installed.
    ///
    /// # Panics
    /// When all is there and does not work.
    pub fn start(fixture: &Value, processes: usize) -> Result<Self, Missing> {
        Self::start_with(fixture, processes, "")
    }

    /// The same with tables as a site has them that was installed with an older version and brought up to date.
    ///
    /// # Errors
    /// As [`Site::start`].
    ///
    /// # Panics
    /// As [`Site::start`].
    pub fn start_migrated(fixture: &Value, processes: usize) -> Result<Self, Missing> {
        Self::start_with(fixture, processes, MIGRATED)
    }

    fn start_with(fixture: &Value, processes: usize, altered: &str) -> Result<Self, Missing> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = root.join("target/peers/manager/bin/python");
        if !python.with_file_name("../stamp").exists() {
            return Err(Missing(
                "the original manager is not installed, which `cargo xtask test` does where there is a Python 3.6".to_owned(),
            ));
        }
        let site = Self {
            postgres: Postgres::start()?,
            etcd: Etcd::start()?,
            redis: Redis::start()?,
            folder: TempDir::with_prefix("bai-site-").map_err(|error| Missing(error.to_string()))?,
            python,
            port: free_port().map_err(|error| Missing(error.to_string()))?,
        };
        let filled = site.fill(fixture, processes, altered);
        filled.unwrap_or_else(|error| panic!("the original does not fill its site: {error:#}"));
        Ok(site)
    }

    fn fill(&self, fixture: &Value, processes: usize, altered: &str) -> Result<()> {
        let folder = self.folder.path();
        let mount = folder.join("volumes");
        fs::create_dir_all(mount.join("local"))?;
        fs::create_dir_all(folder.join("alembic/versions"))?;
        fs::write(self.config(), self.manager_toml(processes)?)?;
        fs::write(folder.join("alembic/env.py"), ALEMBIC_ENV)?;
        let revision = format!("revision = '{HEAD}'\ndown_revision = None\n");
        fs::write(folder.join("alembic/versions/head.py"), revision)?;
        let alembic = format!(
            "[alembic]\nscript_location = {}\nsqlalchemy.url = postgresql://postgres:{PASSWORD}@127.0.0.1:{}/{NAME}\n",
            folder.join("alembic").display(),
            self.postgres.port(),
        );
        fs::write(folder.join("alembic.ini"), alembic)?;
        fs::write(folder.join("fixture.json"), fixture.to_string())?;
        let volumes = serde_json::json!({ "_mount": mount, "_default_host": "local", "_fsprefix": "/" });
        fs::write(folder.join("volumes.json"), volumes.to_string())?;

        self.postgres
            .psql("postgres", &format!("CREATE DATABASE {NAME} TEMPLATE template0"))?;
        self.original(&["schema", "oneshot", "-f", "alembic.ini"])?;
        self.postgres.psql(NAME, altered)?;
        self.original(&["fixture", "populate", "fixture.json"])?;
        self.original(&["etcd", "put", "config/redis/addr", &self.redis.address()])?;
        self.original(&["etcd", "put-json", "volumes", "volumes.json"])?;
        Ok(())
    }

    fn manager_toml(&self, processes: usize) -> Result<String> {
        let folder = self.folder.path().display();
        let (host, port) = ("127.0.0.1", self.port);
        let etcd = self.etcd.address();
        let (db_port, event_port) = (self.postgres.port(), free_port()?);
        Ok(format!(
            r#"# The original ignores this table.
[bai]
data-dir = "{folder}/bai"
local-agent = true

[etcd]
namespace = "{NAME}"
addr = "{etcd}"

[db]
type = "postgresql"
addr = "{host}:{db_port}"
name = "{NAME}"
user = "postgres"
password = "{PASSWORD}"

[manager]
num-proc = {processes}
service-addr = "{host}:{port}"
event-listen-addr = "{host}:{event_port}"
pid-file = "{folder}/manager.pid"
user = -1
group = -1
disabled-plugins = []

[docker-registry]
ssl-verify = false

[logging]
level = "INFO"
drivers = ["console"]
pkg-ns = {{ "" = "WARNING", "ai.backend" = "INFO" }}
console = {{ colored = false, format = "verbose" }}

[debug]
enabled = false
"#
        ))
    }

    /// The `manager.toml`.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("manager.toml")
    }

    /// Where the API of whoever runs is, `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The database's address, with the password.
    pub fn database(&self) -> String {
        self.postgres.uri(NAME)
    }

    /// Runs statements in the database and answers what they print, columns separated by `|`.
    ///
    /// # Panics
    /// When one fails.
    pub fn psql(&self, sql: &str) -> String {
        let answer = self.postgres.psql(NAME, sql);
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a command of the original's `backend.ai-manager` and answers what it printed.
    ///
    /// # Errors
    /// What it printed, when it failed.
    pub fn original(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.python)
            .args(["-m", "ai.backend.manager.cli", "-f", "manager.toml"])
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .context("cannot start the original")?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the original's gateway and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_original(&self) -> Running {
        let launcher = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/gateway.py");
        // It signals its whole process group when it stops, so it gets one of its own.
        let words = [
            Path::new("setsid"),
            &self.python,
            &launcher,
            Path::new("-f"),
            &self.config(),
        ];
        let command = words.map(|word| word.display().to_string());
        let started = self.start_manager("original", &command);
        started.unwrap_or_else(|error| panic!("the original does not start: {error:#}"))
    }

    /// Starts our executable `bai` with the same configuration and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_ours(&self, bai: &Path) -> Running {
        let config = self.config().display().to_string();
        let command = [
            bai.display().to_string(),
            "gateway".to_owned(),
            "--config".to_owned(),
            config,
        ];
        let started = self.start_manager("ours", &command);
        started.unwrap_or_else(|error| panic!("`bai gateway` does not start: {error:#}"))
    }

    fn start_manager(&self, name: &str, command: &[String]) -> Result<Running> {
        let log = self.folder.path().join(format!("{name}.log"));
        let own = self.folder.path().join(name);
        fs::create_dir_all(&own)?;
        let guardian = Guardian::start(command, "TERM", &own, &log)?;
        let running = Running {
            guardian: Some(guardian),
            log,
        };
        for _ in 0..PATIENCE {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(running);
            }
            sleep(POLL);
        }
        bail!("nobody listens: {}", running.log())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end_processes_of(self.folder.path());
    }
}

impl Running {
    /// Lets it stop in good order, and waits for that.
    pub fn stop(mut self) {
        drop(self.guardian.take());
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        tail(&self.log)
    }
}

/// What `schema oneshot` stamps the database through.
const ALEMBIC_ENV: &str = r#"from alembic import context
from sqlalchemy import create_engine

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"#;
