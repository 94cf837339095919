//! The commands, a file each.

pub mod agent;
mod configuration;
pub mod dbshell;
pub mod doctor;
pub mod env;
pub mod etcd;
pub mod fixture;
pub mod gateway;
pub mod gen_keypair;
pub mod image;
pub mod images;
pub mod keys;
pub mod run;
pub mod schema;
pub mod simulate_agents;
pub mod up;
pub mod watcher;

use std::path::PathBuf;

use anyhow::{Context, Result};
use bai_model::SecretKey;

use crate::client::Client;

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

/// The endpoint of the environment, with the old names as 19.06 clients read them.
pub(crate) fn configured_client() -> Result<Option<Client>> {
    let variable = |name: &str| {
        let value = |prefix: &str| {
            std::env::var(format!("{prefix}_{name}"))
                .ok()
                .filter(|value| !value.is_empty())
        };
        value("BACKEND").or_else(|| value("SORNA"))
    };
    let Some(endpoint) = variable("ENDPOINT") else {
        return Ok(None);
    };
    let missing = |name: &str| format!("BACKEND_ENDPOINT is set but BACKEND_{name} is not");
    let access_key = variable("ACCESS_KEY").with_context(|| missing("ACCESS_KEY"))?;
    let secret_key = variable("SECRET_KEY").with_context(|| missing("SECRET_KEY"))?;
    Client::new(&endpoint, &access_key, SecretKey::new(secret_key)).map(Some)
}
