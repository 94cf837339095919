//! What an agent leaves on disk about a running kernel.
//!
//! Invariants: a record is replaced in one step. It need not survive the machine, because the kernel does not either;
//! surviving this process takes no `fsync`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::Groups;

const FILE: &str = "process.json";

/// A kernel that was let go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub container_id: String,
    pub cgroups: Vec<PathBuf>,
}

impl Record {
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("process.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(FILE))
    }

    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    pub fn read_for(dir: &Path, container_id: &str) -> Option<Self> {
        Self::read(dir).filter(|record| record.container_id == container_id)
    }

    pub fn remove(dir: &Path) {
        let _ = fs::remove_file(dir.join(FILE));
    }

    pub fn groups(&self) -> Groups {
        Groups {
            dirs: self.cgroups.clone(),
            limits_memory: false,
        }
    }
}
