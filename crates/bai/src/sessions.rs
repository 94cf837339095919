//! What sessions of a server on this machine are made of: containers, or sandboxed processes of the host.
//!
//! Invariants: images are offered with the runtime that can run them; a data folder with sessions of one runtime is not
//! opened with the other, which would not find them again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bai_agent::Images;
use bai_agent::runtime::Runtime;
use bai_agent::runtime::docker::{DockerRuntime, Engine, EngineError, Options as DockerOptions};
use bai_agent::runtime::process::{Options as ProcessOptions, ProcessRuntime};

use crate::runner;
use crate::wire::unwritable;

/// Names the runtime of the sessions in a data folder.
const FILE: &str = "runtime";
/// What was found out about the engine's images, in the data folder.
const IMAGES: &str = "engine-images.json";

/// What the user wants sessions to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeChoice {
    /// Containers where an engine answers that has images for sessions, else processes
    #[default]
    Auto,
    /// Containers of the engine at DOCKER_HOST or its usual place
    Docker,
    /// Sandboxed processes of this machine
    Process,
}

impl RuntimeChoice {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

/// What is wanted of the sessions of an agent.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Holds what the runtime remembers.
    pub data_dir: &'a Path,
    /// A folder for each session.
    pub scratch_root: &'a Path,
    pub runtime: RuntimeChoice,
    /// Sandboxes die with this process.
    pub ephemeral: bool,
    /// Only this image is wanted; others need not be looked for.
    pub only_image: Option<&'a str>,
    /// User and group of sessions in containers, when they are not for the runtime to choose.
    pub user: Option<(u32, u32)>,
    /// The engine's network for containers, if not its default.
    pub network: Option<&'a str>,
}

/// A runtime with the images that it can run.
#[derive(Debug)]
pub struct Sessions {
    /// Never `Auto`.
    pub chosen: RuntimeChoice,
    pub runtime: Arc<dyn Runtime>,
    pub images: Images,
    /// A sentence for whoever starts the server.
    pub saying: String,
}

/// Chooses the runtime and opens it.
///
/// # Errors
/// When what was asked for is not to be had, with the reason and what to do.
pub async fn choose(wanted: &Wanted<'_>) -> Result<Sessions> {
    let local = wanted;
    let bound = bound(local.data_dir, local.scratch_root);
    let wanted = match (local.runtime, bound) {
        (RuntimeChoice::Auto, Some(bound)) => bound,
        (wanted, Some(bound)) if wanted != bound => bail!(
            "{} holds sessions of the runtime `{}`; end them first, or start with --runtime {}",
            local.data_dir.display(),
            bound.name(),
            bound.name()
        ),
        (wanted, _) => wanted,
    };
    let sessions = match wanted {
        RuntimeChoice::Process => processes(local, "").await?,
        RuntimeChoice::Docker => containers(local, engine().await?).await?,
        RuntimeChoice::Auto => automatic(local).await?,
    };
    if !local.ephemeral {
        let file = local.data_dir.join(FILE);
        fs::write(file, sessions.chosen.name()).with_context(|| unwritable(local.data_dir))?;
    }
    tracing::info!(runtime = sessions.chosen.name(), "{}", sessions.saying);
    Ok(sessions)
}

/// Containers where that gives anybody anything to run.
async fn automatic(local: &Wanted<'_>) -> Result<Sessions> {
    let why_not = match engine().await {
        Err(EngineError::Absent(_)) => String::new(),
        Err(error) => error.to_string(),
        Ok(engine) => {
            let sessions = containers(local, engine).await?;
            let is_empty = match &sessions.images {
                Images::Engine(images) => images.list().await?.is_empty(),
                _ => true,
            };
            if !is_empty {
                return Ok(sessions);
            }
            "Docker answers but has no image that is labelled for sessions; --runtime docker uses it all the same".to_owned()
        }
    };
    processes(local, &why_not).await
}

async fn engine() -> Result<Engine, EngineError> {
    Engine::connect(std::env::var("DOCKER_HOST").ok().as_deref()).await
}

async fn containers(local: &Wanted<'_>, engine: Engine) -> Result<Sessions> {
    let data_dir = fs::canonicalize(local.data_dir).with_context(|| unwritable(local.data_dir))?;
    let runner = runner::install(&data_dir).with_context(|| unwritable(&data_dir))?;
    let saying = format!("sessions are containers of Docker {}", engine.version);
    let mut docker = DockerOptions::new(runner, data_dir.display().to_string());
    docker.user = local.user.unwrap_or(docker.user);
    docker.network = local.network.map(str::to_owned);
    let runtime = DockerRuntime::open(engine, docker, data_dir.join(IMAGES)).await?;
    Ok(Sessions {
        chosen: RuntimeChoice::Docker,
        images: Images::Engine(runtime.images()),
        runtime: Arc::new(runtime),
        saying,
    })
}

async fn processes(local: &Wanted<'_>, why_no_containers: &str) -> Result<Sessions> {
    let runner = runner::install(local.data_dir).with_context(|| unwritable(local.data_dir))?;
    let process = ProcessOptions {
        dies_with_agent: local.ephemeral,
        ..ProcessOptions::default()
    };
    let runtime = ProcessRuntime::new(runner, process);
    if !local.ephemeral {
        // Before anybody counts on it: what the machine refuses is in the log then.
        let probed = runtime.probe().await;
        probed.context("this machine cannot run sessions")?;
    }
    let mut saying =
        "sessions are sandboxed processes, which is no boundary against hostile users".to_owned();
    if !why_no_containers.is_empty() {
        saying = format!("{saying} ({why_no_containers})");
    }
    Ok(Sessions {
        chosen: RuntimeChoice::Process,
        runtime: Arc::new(runtime),
        images: Images::of_host(local.only_image.map(str::to_owned)),
        saying,
    })
}

/// The runtime that a data folder with sessions is bound to. Before there was a choice, they were processes; those of an
/// agent of 19.06, of whom only the scratch root is left, are containers.
fn bound(data_dir: &Path, scratch_root: &Path) -> Option<RuntimeChoice> {
    let kernels = fs::read_dir(scratch_root).ok()?.flatten();
    let is_visible = |kernel: &fs::DirEntry| !kernel.file_name().as_encoded_bytes().starts_with(b".");
    let kernels: Vec<PathBuf> = kernels.filter(is_visible).map(|kernel| kernel.path()).collect();
    let is_of_original =
        |kernel: &PathBuf| kernel.join("config/resource.txt").exists() && !kernel.join("run").exists();
    match fs::read_to_string(data_dir.join(FILE)).as_deref().map(str::trim) {
        _ if kernels.is_empty() => None,
        Ok("docker") => Some(RuntimeChoice::Docker),
        Err(_) if kernels.iter().any(is_of_original) => Some(RuntimeChoice::Docker),
        _ => Some(RuntimeChoice::Process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_sessions_keeps_its_runtime() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(bound(dir.path(), &dir.path().join("scratch")), None);
        fs::write(dir.path().join(FILE), "docker").expect("written");
        fs::create_dir_all(dir.path().join("scratch")).expect("made");
        assert_eq!(
            bound(dir.path(), &dir.path().join("scratch")),
            None,
            "without sessions it is free"
        );
        fs::create_dir(dir.path().join("scratch/k")).expect("made");
        assert_eq!(
            bound(dir.path(), &dir.path().join("scratch")),
            Some(RuntimeChoice::Docker)
        );
        fs::remove_file(dir.path().join(FILE)).expect("removed");
        assert_eq!(
            bound(dir.path(), &dir.path().join("scratch")),
            Some(RuntimeChoice::Process),
            "it is older than the choice"
        );
        fs::create_dir_all(dir.path().join("scratch/k/config")).expect("made");
        fs::write(dir.path().join("scratch/k/config/resource.txt"), "").expect("written");
        assert_eq!(
            bound(dir.path(), &dir.path().join("scratch")),
            Some(RuntimeChoice::Docker),
            "an agent of 19.06 has left it"
        );
    }
}
