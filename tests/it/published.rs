//! The published clients, each in the environment that `cargo xtask test` makes for it below `target/clients`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Somebody's access key and secret key.
pub type Keypair<'a> = (&'a str, &'a str);

const VERSIONS: [&str; 2] = ["19.6.0b2", "23.9.10"];

/// One of them.
pub struct Published {
    version: &'static str,
    environment: PathBuf,
}

impl Published {
    /// Those that are installed; of the others it is said.
    #[expect(clippy::print_stdout, reason = "how a test says that it was skipped")]
    pub fn all() -> Vec<Self> {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients");
        let found = |version: &'static str| {
            let environment = clients.join(version);
            if !environment.join("stamp").exists() {
                println!("SKIPPED: the client {version}, because it is not installed");
                return None;
            }
            Some(Self { version, environment })
        };
        VERSIONS.into_iter().filter_map(found).collect()
    }

    /// A program of its environment, with the settings of somebody.
    fn command(&self, endpoint: &str, (access_key, secret_key): Keypair<'_>, home: &Path) -> Command {
        let mut command = Command::new(self.environment.join("bin/python"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs([("LANG", "C.UTF-8"), ("LC_ALL", "C.UTF-8"), ("COLUMNS", "200")])
            .env("HOME", home)
            .env("BACKEND_ENDPOINT", endpoint)
            .env("BACKEND_ENDPOINT_TYPE", "api")
            .env("BACKEND_ACCESS_KEY", access_key)
            .env("BACKEND_SECRET_KEY", secret_key)
            .current_dir(home);
        command
    }

    fn program(&self) -> PathBuf {
        self.environment.join("bin/backend.ai")
    }

    /// Starts a session, runs code, moves files and ends it (`tests/clients/session.py`).
    pub fn goes_through_a_session(&self, endpoint: &str, keypair: Keypair<'_>) {
        let scratch = tempfile::tempdir().unwrap();
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/session.py");
        let mut driving = self.command(endpoint, keypair, scratch.path());
        driving.arg(driver).args(["--generation", self.version]);
        driving.arg("--client").arg(self.program());
        driving.arg("--scratch").arg(scratch.path());
        let output = driving.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.ends_with("end\n"),
            "{}: {output:?}",
            self.version
        );
    }

    /// Asks for somebody's virtual folders one by one, because newer clients list them by a query that 19.06 does not know.
    /// What they show of one ends at a member that its answers do not have, so how the command ends is not looked at.
    pub fn sees_folders(&self, endpoint: &str, keypair: Keypair<'_>, names: [&str; 2]) {
        let home = tempfile::tempdir().unwrap();
        for name in names {
            let mut info = self.command(endpoint, keypair, home.path());
            info.arg(self.program()).args(["vfolder", "info", name]);
            let output = info.output().unwrap();
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(
                shown.contains(&format!("Virtual folder \"{name}\"")),
                "{}: {output:?}",
                self.version
            );
        }
    }
}
