//! The real clients, from their package index, against a running server.
//!
//! Each client gets a virtual environment below `target/clients/`, made once for each content of its requirements file.
//! `tests/clients/session.py` drives the installed command and prints a line for each case.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::{Tally, say};
use crate::{services, shell};

/// A published client and where it runs.
#[derive(Debug)]
struct Client {
    version: &'static str,
    /// Acceptable minor versions of Python 3, best first.
    pythons: &'static [u32],
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

/// Drives every client that this machine can run.
pub fn run(tally: &mut Tally) -> Result<()> {
    let pythons = pythons();
    for client in CLIENTS {
        let name = format!("backend.ai-client {}", client.version);
        let requirements = format!("tests/clients/requirements-{}.txt", client.version);
        let folder = shell::root().join("target/clients").join(client.version);
        match environment(&name, client.pythons, &requirements, &folder, &pythons) {
            Ok(python) => drive(client, &python, &folder, tally)?,
            Err(reason) => tally.skip(&name, &format!("{reason:#}")),
        }
    }
    Ok(())
}

/// Libraries that the tests of the ZeroMQ transport talk with: name of the environment and Pythons, best first.
const PEERS: &[(&str, &[u32])] = &[("19.06", &[6, 7]), ("current", &[11, 12, 10, 13, 9])];

/// Makes the environments of `crates/bai-proto/tests/zmq/interop.rs`, which skips what is missing.
pub fn prepare_peers() {
    for (name, minors) in PEERS {
        let requirements = format!("tests/interop/requirements-{name}.txt");
        let folder = shell::root().join("target/interop").join(name);
        if let Err(error) = environment(
            &format!("aiozmq ({name})"),
            minors,
            &requirements,
            &folder,
            &pythons(),
        ) {
            say(&format!("no environment for aiozmq ({name}): {error:#}"));
            // Half an environment would be a failure instead of a skip.
            _ = fs::remove_dir_all(folder);
        }
    }
}

/// Every Python on this machine that can make virtual environments, with its minor version.
fn pythons() -> Vec<(u32, PathBuf)> {
    let mut candidates = vec![PathBuf::from("python3")];
    candidates.extend((6..=13).map(|minor| PathBuf::from(format!("python3.{minor}"))));
    let versions = shell::answer(Command::new("pyenv").arg("root")).map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    for root in versions.into_iter().chain(home) {
        if let Ok(entries) = fs::read_dir(root.join("versions")) {
            candidates.extend(entries.flatten().map(|entry| entry.path().join("bin/python3")));
        }
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for candidate in candidates {
        if let Some(minor) = minor_version(&candidate)
            && !found.iter().any(|(known, _)| *known == minor)
        {
            found.push((minor, candidate));
        }
    }
    found
}

fn minor_version(python: &Path) -> Option<u32> {
    let probe = "import ensurepip, sys, venv; print(sys.version_info[1])";
    shell::answer(Command::new(python).args(["-c", probe]))?
        .parse()
        .ok()
}

/// Makes the virtual environment `folder` when it is missing; the Python that it is made with.
fn environment(
    name: &str,
    minors: &[u32],
    requirements: &str,
    folder: &Path,
    pythons: &[(u32, PathBuf)],
) -> Result<PathBuf> {
    let mut pythons = pythons.to_vec();
    if pythons.is_empty() && services::install_packages(&["python3", "python3-venv"]) {
        pythons = self::pythons();
    }
    let wanted = |minor: &&u32| pythons.iter().find(|(known, _)| known == *minor);
    let Some((_, python)) = minors.iter().find_map(|minor| wanted(&minor)) else {
        let names: Vec<_> = minors.iter().map(|minor| format!("3.{minor}")).collect();
        bail!(
            "no Python {} with venv and pip on this machine",
            names.join(" or ")
        );
    };
    let requirements = shell::root().join(requirements);
    let text = fs::read(&requirements);
    let mut stamp = DefaultHasher::new();
    text.with_context(|| format!("{} is missing", requirements.display()))?
        .hash(&mut stamp);
    let stamp = format!("{:016x}", stamp.finish());
    if fs::read_to_string(folder.join("stamp")).is_ok_and(|made_for| made_for == stamp) {
        return Ok(python.clone());
    }
    say(&format!("making a virtual environment for {name}"));
    quiet(Command::new(python).args(["-m", "venv", "--clear"]).arg(folder))?;
    let pip = folder.join("bin/python");
    let install = [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--requirement",
    ];
    quiet(Command::new(pip).args(install).arg(&requirements))?;
    fs::write(folder.join("stamp"), stamp)?;
    Ok(python.clone())
}

/// Runs without showing the output; its last line is the reason of a failure.
fn quiet(command: &mut Command) -> Result<()> {
    let shown = shell::describe(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {shown}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    bail!("`{shown}` failed: {}", last.unwrap_or("without a word"))
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
