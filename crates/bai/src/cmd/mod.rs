//! The commands, a file each.

pub mod dbshell;
pub mod doctor;
pub mod env;
pub mod etcd;
pub mod fixture;
pub mod gateway;
pub mod gen_keypair;
pub mod images;
pub mod keys;
pub mod run;
pub mod schema;
pub mod simulate_agents;
pub mod up;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The data directory of this user's server: as given, or `bai` below the user's data folder.
pub(crate) fn data_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(given) = given {
        return std::path::absolute(&given).with_context(|| format!("{} is no usable path", given.display()));
    }
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    base.map(|base| base.join("bai"))
        .context("HOME is not set; name a directory with --data-dir")
}
