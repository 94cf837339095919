//! Which file, and what it says before it is understood.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::Table;

use super::ConfigError;
use super::environment::{Environment, Variables, overlay};

/// Bytes of a file that is one of ours.
const MAX_SIZE: u64 = 1 << 20;

/// Where the file `name` is; see [`super::locate`].
pub(super) fn locate(name: &str, environment: &Environment) -> Result<PathBuf, ConfigError> {
    if let Some(path) = environment.get("BACKEND_CONFIG_FILE") {
        return Ok(PathBuf::from(path));
    }
    let mut places = vec![PathBuf::from(name)];
    if let Some(home) = environment.get("HOME") {
        places.push(Path::new(home).join(".config/backend.ai").join(name));
    }
    places.push(Path::new("/etc/backend.ai").join(name));
    if let Some(found) = places.iter().find(|place| place.is_file()) {
        return Ok(found.clone());
    }
    let places: Vec<String> = places
        .iter()
        .map(|place| format!("  {}", place.display()))
        .collect();
    Err(ConfigError::File(format!(
        "there is no configuration file; looked for\n{}\nName one with --config FILE or BACKEND_CONFIG_FILE",
        places.join("\n")
    )))
}

/// A file's contents with the environment over them.
#[derive(Debug)]
pub(super) struct Source {
    pub table: Table,
    /// Which variable set which key.
    origins: BTreeMap<&'static str, &'static str>,
}

impl Source {
    pub fn read(path: &Path, environment: &Environment, variables: &Variables) -> Result<Self, ConfigError> {
        let failed = |why: String| ConfigError::File(format!("{}: {why}", path.display()));
        let mut text = String::new();
        let file = fs::File::open(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        let read = file.take(MAX_SIZE + 1).read_to_string(&mut text);
        read.map_err(|error| failed(format!("cannot be read: {error}")))?;
        if text.len() as u64 > MAX_SIZE {
            return Err(failed(
                "is larger than 1 MiB, which no configuration is".to_owned(),
            ));
        }
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count());
            // Not the line itself, as the library would print it: there may be a password in it.
            failed(format!("line {}: {}", line + 1, error.message()))
        })?;
        let origins = overlay(&mut table, environment, variables);
        Ok(Self { table, origins })
    }

    pub fn variable(&self, key: &str) -> Option<&'static str> {
        self.origins.get(key).copied()
    }

    pub fn variables(&self) -> Vec<&'static str> {
        let mut variables: Vec<_> = self.origins.values().copied().collect();
        variables.sort_unstable();
        variables.dedup();
        variables
    }
}
