//! The real clients, from their package index, against a running server.
//!
//! Each client gets a virtual environment below `target/clients/`, made once for each content of its requirements file.
//! `tests/clients/session.py` drives the installed command and prints a line for each case.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::python::{self, Requirements};
use crate::report::{Tally, say};
use crate::shell;

/// A published client and where it runs.
#[derive(Debug)]
struct Client {
    version: &'static str,
    /// Acceptable minor versions of Python 3, best first.
    pythons: &'static [u32],
}

impl Client {
    fn requirements(&self) -> Requirements {
        Requirements {
            file: format!("tests/clients/requirements-{}.txt", self.version),
            folder: format!("clients/{}", self.version),
            pythons: self.pythons,
            are_complete: false,
        }
    }
}

const CLIENTS: &[Client] = &[
    Client {
        version: "23.9.10",
        pythons: &[11, 10, 9],
    },
    Client {
        version: "19.6.0b2",
        pythons: &[7, 6, 8],
    },
];

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(30);

/// Makes the environments of the clients, which tests of the workspace use too. Why one cannot be made is told by [`run`].
pub fn install_missing() {
    for client in CLIENTS {
        _ = python::environment(&client.requirements());
    }
}

/// Drives every client that this machine can run.
pub fn run(tally: &mut Tally) -> Result<()> {
    for client in CLIENTS {
        let name = format!("backend.ai-client {}", client.version);
        match python::environment(&client.requirements()) {
            Ok((python, folder)) => drive(client, &python, &folder, tally)?,
            Err(reason) => tally.skip(&name, &format!("{reason:#}")),
        }
    }
    Ok(())
}

/// Starts a server and lets one client talk to it.
fn drive(client: &Client, python: &Path, folder: &Path, tally: &mut Tally) -> Result<()> {
    let name = format!("backend.ai-client {}", client.version);
    let server = match Server::start(&format!("client-{}", client.version)) {
        Ok(server) => server,
        Err(error) => {
            tally.fail(&format!("{name}: the server does not start: {error:#}"));
            return Ok(());
        }
    };
    let mut driver = Command::new(python);
    driver
        .arg("-u")
        .arg(shell::root().join("tests/clients/session.py"));
    driver.arg("--client").arg(folder.join("bin/backend.ai"));
    driver
        .args(["--generation", client.version])
        .arg("--scratch")
        .arg(&server.scratch);
    for (key, value) in &server.settings {
        driver.env(key, value);
    }
    say(&format!("$ {}", shell::describe(&driver)));
    let output = driver.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut ended = false;
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("ok", case)) => {
                say(&format!("ok {name}: {case}"));
                tally.pass();
            }
            Some(("FAILED", case)) => tally.fail(&format!("{name}: {case}")),
            Some(("SKIPPED", case)) => tally.skip(&name, case),
            _ if line == "end" => ended = true,
            _ => say(line),
        }
    }
    if !ended {
        tally.fail(&format!("{name}: the driver ended early ({})", output.status));
    }
    if let Err(error) = server.stop() {
        tally.fail(&format!("{name}: the server does not stop: {error:#}"));
    }
    Ok(())
}

/// `bai up` on a folder of its own. Dropping it leaves nothing.
#[derive(Debug)]
struct Server {
    process: Child,
    scratch: PathBuf,
    settings: Vec<(String, String)>,
}

impl Server {
    fn start(name: &str) -> Result<Self> {
        let scratch = env::temp_dir().join(format!("bai-xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        let log = fs::File::create(scratch.join("server.log"))?;
        let bai = shell::root().join("target/debug/bai");
        let data = scratch.join("data");
        let mut up = Command::new(&bai);
        up.args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data);
        up.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = up
            .spawn()
            .with_context(|| format!("cannot start {}", bai.display()))?;
        let mut server = Self {
            process,
            scratch,
            settings: Vec::new(),
        };
        let deadline = Instant::now() + START;
        loop {
            let exports = shell::answer(
                Command::new(&bai)
                    .args(["env", "--user", "--data-dir"])
                    .arg(&data),
            );
            if let Some(exports) = exports {
                server.settings = exports.lines().filter_map(export).collect();
                return Ok(server);
            }
            if server.process.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("{}", server.last_words());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the server to end, as a person would with Ctrl-C, and waits.
    fn stop(mut self) -> Result<()> {
        let id = self.process.id().to_string();
        if !Command::new("kill").arg(&id).status()?.success() {
            bail!("it had ended before: {}", self.last_words());
        }
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    bail!("{status}: {}", self.last_words())
                };
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("it goes on after SIGTERM: {}", self.last_words())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.scratch.join("server.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        // Sessions outlive their server on purpose, so that a failed run could leave some.
        for id in processes_of(self.scratch.as_os_str()) {
            _ = Command::new("kill")
                .args(["-9", &id])
                .stderr(Stdio::null())
                .status();
        }
        _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Processes whose command line or executable names the folder.
fn processes_of(folder: &OsStr) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned();
    let names_it = |process: &Path| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let executable = fs::read_link(process.join("exe")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&needle) || executable.to_string_lossy().contains(&needle)
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbered = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    let ids = entries.flatten().filter_map(numbered);
    let ids = ids.filter(|(id, path)| id.parse::<u32>().is_ok() && names_it(path));
    ids.map(|(id, _)| id).collect()
}

/// Key and value of a line such as `export BACKEND_ENDPOINT='http://127.0.0.1:8081'`.
fn export(line: &str) -> Option<(String, String)> {
    let (key, value) = line.strip_prefix("export ")?.split_once('=')?;
    Some((key.to_owned(), value.trim_matches('\'').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read() {
        let read = export("export BACKEND_ACCESS_KEY='AKIA'");
        assert_eq!(read, Some(("BACKEND_ACCESS_KEY".to_owned(), "AKIA".to_owned())));
        assert_eq!(export("# nothing"), None);
    }
}
