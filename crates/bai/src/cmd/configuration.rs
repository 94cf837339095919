//! What every command of a configured daemon does first: read its configuration, or only show it.

use std::path::Path;

use anyhow::Result;

use crate::config::{self, Configuration, Environment, Loaded};
use crate::output::{raw, say};

/// Whether the configuration is only to be looked at.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Look {
    /// Only say whether the configuration is valid
    #[arg(long)]
    check_config: bool,
    /// Only print the configuration with its defaults, secrets masked
    #[arg(long, conflicts_with = "check_config")]
    dump_config: bool,
}

impl Look {
    /// Reads the configuration. `None` when it was only to be looked at, which is done then.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn load<C: Configuration>(
        self,
        file: Option<&Path>,
        environment: &Environment,
    ) -> Result<Option<Loaded<C>>> {
        let loaded: Loaded<C> = config::load(file, environment)?;
        if !self.check_config && !self.dump_config {
            return Ok(Some(loaded));
        }
        for note in &loaded.notes {
            say(&format!("bai: note: {note}"));
        }
        if self.dump_config {
            raw(loaded.dump()?.as_bytes())?;
        } else {
            say(&format!("bai: {} is valid", loaded.path.display()));
        }
        Ok(None)
    }
}
