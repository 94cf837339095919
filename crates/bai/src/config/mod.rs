//! The configuration of a site's processes: `manager.toml` of a manager (`http-api.md` 5.1 to 5.3) and `agent.toml` of an
//! agent (`agent-protocol.md` 7.1), each with the environment over it, and the table `[bai]` for what 19.06 has no key for.
//!
//! Invariants: a file of 19.06 works as it is, and a file for us starts the original as well, which ignores `[bai]`; a
//! configuration is taken whole or not at all, and then all that is wrong with it is said, each with key, place and remedy;
//! secrets are printed by nobody.
//!
//! Not here: what is kept in etcd (`config/…`, such as where Redis is), and what the values do.

pub mod agent;
mod bai;
mod db;
mod debug;
mod docker_registry;
mod environment;
mod etcd;
mod file;
mod logging;
mod manager;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod value;

use std::path::PathBuf;

use serde::Serialize;

pub use bai::{AgentTls, Bai};
pub use db::Db;
pub use debug::Debug;
pub use docker_registry::DockerRegistry;
pub use environment::Environment;
pub use etcd::Etcd;
pub use logging::{Console, File, Format, Level, Logging};
pub use manager::{Account, Manager};
pub use secret::{Address, Secret};
pub use value::HostPort;

use environment::Variables;
use file::Source;
use section::{Problem, Problems};

/// A whole valid configuration.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ManagerConfig {
    pub etcd: Etcd,
    pub db: Option<Db>,
    pub manager: Manager,
    pub docker_registry: DockerRegistry,
    pub logging: Logging,
    pub debug: Debug,
    pub bai: Bai,
}

/// A file of configuration that some process has.
pub trait Configuration: Serialize + Sized {
    /// Whose it is, in sentences.
    const OF: &'static str;
    /// What it is called where it is looked for.
    const FILE: &'static str;
    /// The environment over it.
    #[doc(hidden)]
    const VARIABLES: &'static Variables;

    /// `None` only when a problem was noted.
    #[doc(hidden)]
    fn read(problems: &mut Problems<'_>) -> Option<Self>;
}

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded<C = ManagerConfig> {
    pub config: C,
    pub path: PathBuf,
    /// What is legal and may still be a mistake, a sentence each.
    pub notes: Vec<String>,
    /// The variables that took part.
    variables: Vec<&'static str>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    File(String),
    #[error("{}", list(of, path, problems))]
    Invalid {
        of: &'static str,
        path: PathBuf,
        problems: Vec<Problem>,
    },
}

fn list(of: &str, path: &std::path::Path, problems: &[Problem]) -> String {
    let mut text = format!("Validation of {of} configuration has failed: {}", path.display());
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// Reads and checks the file at `given`, or else the first that is found where [`locate`] says.
///
/// # Errors
/// [`ConfigError`], which says all that is wrong.
pub fn load<C: Configuration>(
    given: Option<&std::path::Path>,
    environment: &Environment,
) -> Result<Loaded<C>, ConfigError> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => locate::<C>(environment)?,
    };
    let source = Source::read(&path, environment, C::VARIABLES)?;
    let variables = source.variables();
    let mut problems = Problems::new(&source);
    let config = C::read(&mut problems);
    let (problems, notes) = problems.end();
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded {
            config,
            path,
            notes,
            variables,
        }),
        _ => Err(ConfigError::Invalid {
            of: C::OF,
            path,
            problems,
        }),
    }
}

/// The file that `BACKEND_CONFIG_FILE` names, or else the first that exists of `./<file>`, `~/.config/backend.ai/<file>`
/// and `/etc/backend.ai/<file>`.
///
/// # Errors
/// When there is none.
pub fn locate<C: Configuration>(environment: &Environment) -> Result<PathBuf, ConfigError> {
    file::locate(C::FILE, environment)
}

impl Configuration for ManagerConfig {
    const OF: &'static str = "manager";
    const FILE: &'static str = "manager.toml";
    const VARIABLES: &'static Variables = &environment::MANAGER;

    fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let bai = Bai::read(problems);
        let needs_db = bai.as_ref().is_none_or(|bai| bai.database.is_none());
        let db = if needs_db || problems.has("db") {
            Some(Db::read(problems))
        } else {
            None
        };
        // All sections are read before any is missed, so that all problems are found.
        let (etcd, manager) = (Etcd::read(problems), Manager::read(problems));
        let docker_registry = DockerRegistry::read(problems);
        let logging = Logging::read(problems);
        let debug = Debug::read(problems);
        problems.note_unknown_tables();
        Some(Self {
            etcd: etcd?,
            db: match db {
                Some(db) => Some(db?),
                None => None,
            },
            manager: manager?,
            docker_registry: docker_registry?,
            logging: logging?,
            debug: debug?,
            bai: bai?,
        })
    }
}

impl<C: Serialize> Loaded<C> {
    /// The configuration as TOML, defaults filled in and secrets masked.
    ///
    /// # Errors
    /// Never for what [`load`] gives.
    pub fn dump(&self) -> Result<String, toml::ser::Error> {
        let mut text = format!("# {}", self.path.display());
        if !self.variables.is_empty() {
            text.push_str(" with ");
            text.push_str(&self.variables.join(", "));
        }
        text.push_str("\n\n");
        text.push_str(&toml::to_string(&self.config)?);
        Ok(text)
    }
}
