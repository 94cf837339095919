//! What is found out about programs, and kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::tools::Tool;

/// A program that does not tell its version in this time has none.
const DEADLINE: Duration = Duration::from_secs(10);
/// After this time a script is looked at again.
const SCRIPT_TRUST: TimeDelta = TimeDelta::hours(24);

/// A file that may be a program of the kind.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub tool: &'static Tool,
    pub path: PathBuf,
    /// What the links on the path lead to.
    pub real: PathBuf,
    stamp: Stamp,
    /// Scripts can lead somewhere else tomorrow.
    is_script: bool,
}

/// When a file is another file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
}

/// A program that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub version: String,
    pub executable: PathBuf,
    /// Of the executable.
    stamp: Stamp,
}

/// What is known about files, by path.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cache(BTreeMap<PathBuf, Known>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    /// When it was looked at.
    seen: DateTime<Utc>,
    /// `None` for a file that is not what its name says.
    program: Option<Program>,
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            size: meta.len(),
        }
    }
}

impl Candidate {
    /// The program at `path`, if there is an executable file. Blocking.
    pub fn at(tool: &'static Tool, path: PathBuf) -> Option<Self> {
        let real = fs::canonicalize(&path).ok()?;
        let meta = fs::metadata(&real).ok()?;
        if !meta.is_file() || meta.mode() & 0o111 == 0 {
            return None;
        }
        let mut start = [0; 2];
        let is_script = fs::File::open(&real)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
            && start == *b"#!";
        Some(Self {
            tool,
            path,
            real,
            stamp: Stamp::of(&meta),
            is_script,
        })
    }

    /// Runs the program to see what it is.
    async fn look(&self) -> Option<Program> {
        let mut printed = Vec::new();
        for arguments in self.tool.arguments {
            let mut command = tokio::process::Command::new(&self.path);
            command.args(*arguments).stdin(Stdio::null()).kill_on_drop(true);
            let output = tokio::time::timeout(DEADLINE, command.output())
                .await
                .ok()?
                .ok()?;
            if !output.status.success() {
                return None;
            }
            // Some print their version to standard error.
            printed.extend([output.stdout, b"\n".to_vec(), output.stderr, b"\n".to_vec()].concat());
        }
        let (version, place) = self.tool.understand(&String::from_utf8_lossy(&printed))?;
        let executable = place.unwrap_or_else(|| self.real.clone());
        let meta = tokio::fs::metadata(&executable).await.ok()?;
        Some(Program {
            version,
            executable,
            stamp: Stamp::of(&meta),
        })
    }
}

impl Program {
    /// Text that changes when the program does. Not a cryptographic digest, only of the form of one: nothing is
    /// downloaded by it.
    pub fn digest(&self) -> String {
        let Stamp { modified, size } = &self.stamp;
        let text = format!(
            "{}\0{}\0{modified:?}\0{size}",
            self.executable.display(),
            self.version
        );
        let parts: Vec<String> = (0..4u8)
            .map(|part| format!("{:016x}", fnv1a(part, text.as_bytes())))
            .collect();
        format!("sha256:{}", parts.concat())
    }
}

/// The 64-bit FNV-1a hash of a byte and then of `bytes`.
fn fnv1a(first: u8, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes
        .iter()
        .fold(step(0xcbf2_9ce4_8422_2325, first), |hash, byte| step(hash, *byte))
}

impl Cache {
    /// Reads what an earlier start kept; empty if there is nothing of use. Blocking.
    pub fn read(file: &Path) -> Self {
        fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Keeps what is known. Blocking.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let temporary = file.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, file)
    }

    fn known(&self, candidate: &Candidate) -> Option<&Known> {
        self.0
            .get(&candidate.path)
            .filter(|known| known.stamp == candidate.stamp)
    }

    /// The program at the candidate's path, as far as is known.
    pub fn program(&self, candidate: &Candidate) -> Option<&Program> {
        self.known(candidate)?.program.as_ref()
    }

    /// Whether another look would show nothing else, or for a script nothing else so soon.
    pub fn is_sure(&self, candidate: &Candidate, now: DateTime<Utc>) -> bool {
        self.known(candidate)
            .is_some_and(|known| !candidate.is_script || now - known.seen < SCRIPT_TRUST)
    }

    /// Looks at files, all at the same time.
    pub async fn look(&mut self, candidates: Vec<Candidate>, seen: DateTime<Utc>) {
        let looks: JoinSet<_> = candidates
            .into_iter()
            .map(|candidate| async move { (candidate.look().await, candidate) })
            .collect();
        for (program, Candidate { path, stamp, .. }) in looks.join_all().await {
            self.0.insert(path, Known { stamp, seen, program });
        }
    }

    /// Forgets files that are not there any more.
    pub fn retain(&mut self, candidates: &[Candidate]) {
        self.0
            .retain(|path, _| candidates.iter().any(|candidate| candidate.path == *path));
    }
}
