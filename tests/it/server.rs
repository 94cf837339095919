//! The executable as a process: how tests start it, a server on a folder of its own, and what it leaves.
//!
//! The server is `bai up`, and on the cluster profile (`BAI_TEST_PROFILE`, [`Profile`]) `bai gateway` on PostgreSQL, etcd
//! and Redis, with sessions on this host.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use bai_testkit::profile::{Profile, Servers};
use bai_testkit::services::postgres::PASSWORD;
use bai_testkit::services::{end_processes_of, processes_of};
use tempfile::TempDir;

/// The executable beside this test's, built by `cargo xtask test`.
pub fn bai() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("bai");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p bai` first",
        path.display()
    );
    path
}

/// A command with folders of its own and no endpoint.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(bai());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // The real home: tools such as rustup look for their settings there.
    command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
    command.env("XDG_DATA_HOME", home).env("TMPDIR", home);
    command
}

/// What a command that went well printed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What outlives a server: its folder and, on the cluster profile, the services that it shares with others like it.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    servers: Option<Servers>,
}

impl Home {
    /// A new one, with services that nobody has used.
    pub fn new() -> Self {
        let home = Self {
            folder: tempfile::tempdir().unwrap(),
            servers: (Profile::chosen() == Profile::Cluster).then(Servers::start),
        };
        if let Some(servers) = &home.servers {
            fs::write(home.config(), home.manager_toml(servers)).unwrap();
            let redis = servers.redis.address();
            let mut put = command(home.path());
            put.args(["etcd", "put", "config/redis/addr", &redis, "--config"])
                .arg(home.config());
            stdout(&put.output().unwrap());
        }
        home
    }

    fn manager_toml(&self, servers: &Servers) -> String {
        let Servers {
            database,
            etcd,
            namespace,
            ..
        } = servers;
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        format!(
            "[etcd]\nnamespace = '{namespace}'\naddr = '{}'\n[db]\naddr = '{}'\nname = '{}'\nuser = 'postgres'\n\
             password = '{PASSWORD}'\n[manager]\nservice-addr = '127.0.0.1:{port}'\n[bai]\nlocal-agent = true\n\
             data-dir = '{}'\n",
            etcd.address(),
            database.address(),
            database.name(),
            self.data_dir().display()
        )
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the server keeps what is its own.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    fn config(&self) -> PathBuf {
        self.path().join("manager.toml")
    }

    /// The address of the server's database.
    pub fn database(&self) -> String {
        match &self.servers {
            None => format!("sqlite://{}", self.data_dir().join("bai.db").display()),
            Some(servers) => servers.database.uri(),
        }
    }

    /// The command that starts a server here.
    pub fn server(&self) -> Command {
        let mut server = command(self.path());
        match &self.servers {
            None => server
                .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
                .arg(self.data_dir()),
            Some(_) => server.args(["gateway", "--config"]).arg(self.config()),
        };
        server
    }

    /// What a first start leaves, in some order: files in its folder, and tables or indexes in a database of its own.
    pub fn traces(&self) -> &'static [&'static str] {
        match &self.servers {
            None => &[
                "lock",
                "bin",
                "bai.db",
                "config.db",
                "credentials.json",
                "scratch",
                "endpoint",
            ],
            Some(_) => &[
                "lock",
                "kernels",
                "bai_ix_vfolders_user",
                "credentials.json",
                "bin",
                "scratch",
                "endpoint",
            ],
        }
    }

    /// Whether a server has left this so far.
    pub fn has(&self, trace: &str) -> bool {
        let in_database = |servers: &Servers| {
            let sql = format!("SELECT count(*) FROM pg_class WHERE relname = '{trace}'");
            servers.database.psql(&sql) != "0"
        };
        self.data_dir().join(trace).exists() || self.servers.as_ref().is_some_and(in_database)
    }
}

/// A running server, killed when the test ends.
pub struct Up {
    child: Child,
    pub home: Home,
    pub settings: Vec<(String, String)>,
}

impl Up {
    /// On a new folder.
    pub fn start() -> Self {
        Self::start_in(Home::new())
    }

    /// On a folder that has a history.
    pub fn start_in(home: Home) -> Self {
        Self::start_with(home, &[], &[])
    }

    /// With more arguments and variables.
    pub fn start_with(home: Home, arguments: &[&str], environ: &[(&str, &str)]) -> Self {
        let endpoint = home.data_dir().join("endpoint");
        _ = fs::remove_file(&endpoint);
        let child = home
            .server()
            .args(arguments)
            .envs(environ.iter().copied())
            .stderr(fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut up = Self {
            child,
            home,
            settings: Vec::new(),
        };
        up.wait_for("the endpoint", |_| endpoint.exists());
        let env = command(up.home.path())
            .args(["env", "--user", "--data-dir"])
            .arg(up.home.data_dir())
            .output()
            .unwrap();
        let settings = stdout(&env);
        up.settings = settings
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        assert_eq!(up.settings.len(), 4, "{settings}");
        up
    }

    /// Waits for a condition, for at most half a minute.
    pub fn wait_for(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !is_met(self) {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "the server ended: {}", log());
            assert!(Instant::now() < deadline, "{what} did not come: {}", log());
            // Who only yields takes the time from what is waited for.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `bai run` with the settings of the server's ordinary user.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut run = command(self.home.path());
        run.arg("run").args(arguments).envs(self.settings.clone());
        run.output().unwrap()
    }

    /// One of the settings, such as `BACKEND_ENDPOINT`.
    pub fn setting(&self, name: &str) -> &str {
        let found = self.settings.iter().find(|(known, _)| known == name);
        &found.unwrap().1
    }

    /// Sends the signal, waits for the end and returns the folder.
    pub fn stop(mut self, signal: &str) -> Home {
        let killed = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        assert!(signal == "-KILL" || status.success(), "{status}");
        let nobodys = Home {
            folder: tempfile::tempdir().unwrap(),
            servers: None,
        };
        std::mem::replace(&mut self.home, nobodys)
    }
}

impl Drop for Home {
    /// Sessions outlive their server on purpose: what a test that failed leaves would take the processor from those after it.
    fn drop(&mut self) {
        end_processes_of(self.path());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        for line in processes_of(self.home.path()) {
            assert!(
                !line.contains("bai up") && !line.contains("bai gateway"),
                "{line}"
            );
        }
    }
}
