//! What sessions of a server on this machine are made of: containers, or sandboxed processes of the host.
//!
//! Invariants: images are offered with the runtime that can run them; a data folder with sessions of one runtime is not
//! opened with the other, which would not find them again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bai_agent::Images;
use bai_agent::runtime::Runtime;
use bai_agent::runtime::docker::{DockerRuntime, Engine, EngineError, Options as DockerOptions};
use bai_agent::runtime::process::{Options as ProcessOptions, ProcessRuntime};

use crate::runner;
use crate::wire::{LocalAgent, unwritable};

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
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

/// A runtime with the images that it can run.
#[derive(Debug)]
pub struct Sessions {
    pub runtime: Arc<dyn Runtime>,
    pub images: Images,
    /// A sentence for whoever starts the server.
    pub saying: String,
}

/// Chooses the runtime and opens it.
///
/// # Errors
/// When what was asked for is not to be had, with the reason and what to do.
pub async fn choose(local: &LocalAgent) -> Result<Sessions> {
    let bound = bound(&local.data_dir);
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
    let (sessions, chosen) = match wanted {
        RuntimeChoice::Process => (processes(local, "").await?, RuntimeChoice::Process),
        RuntimeChoice::Docker => {
            let engine = engine().await?;
            (containers(local, engine).await?, RuntimeChoice::Docker)
        }
        RuntimeChoice::Auto => automatic(local).await?,
    };
    if !local.ephemeral {
        let file = local.data_dir.join(FILE);
        fs::write(file, chosen.name()).with_context(|| unwritable(&local.data_dir))?;
    }
    tracing::info!(runtime = chosen.name(), "{}", sessions.saying);
    Ok(sessions)
}

/// Containers where that gives anybody anything to run.
async fn automatic(local: &LocalAgent) -> Result<(Sessions, RuntimeChoice)> {
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
                return Ok((sessions, RuntimeChoice::Docker));
            }
            "Docker answers but has no image that is labelled for sessions; --runtime docker uses it all the same".to_owned()
        }
    };
    Ok((processes(local, &why_not).await?, RuntimeChoice::Process))
}

async fn engine() -> Result<Engine, EngineError> {
    Engine::connect(std::env::var("DOCKER_HOST").ok().as_deref()).await
}

async fn containers(local: &LocalAgent, engine: Engine) -> Result<Sessions> {
    let data_dir = fs::canonicalize(&local.data_dir).with_context(|| unwritable(&local.data_dir))?;
    let runner = runner::install(&data_dir).with_context(|| unwritable(&data_dir))?;
    let saying = format!("sessions are containers of Docker {}", engine.version);
    let docker = DockerOptions {
        network: local.docker_network.clone(),
        ..DockerOptions::new(runner, data_dir.display().to_string())
    };
    let runtime = DockerRuntime::open(engine, docker, data_dir.join(IMAGES)).await?;
    Ok(Sessions {
        images: Images::Engine(runtime.images()),
        runtime: Arc::new(runtime),
        saying,
    })
}

async fn processes(local: &LocalAgent, why_no_containers: &str) -> Result<Sessions> {
    let runner = runner::install(&local.data_dir).with_context(|| unwritable(&local.data_dir))?;
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
        runtime: Arc::new(runtime),
        images: Images::of_host(local.only_image.clone()),
        saying,
    })
}

/// The runtime that a data folder with sessions is bound to. Before there was a choice, they were processes.
fn bound(data_dir: &Path) -> Option<RuntimeChoice> {
    let mut kernels = fs::read_dir(data_dir.join("scratch")).ok()?;
    kernels.next()?.ok()?;
    match fs::read_to_string(data_dir.join(FILE)).as_deref().map(str::trim) {
        Ok("docker") => Some(RuntimeChoice::Docker),
        _ => Some(RuntimeChoice::Process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_sessions_keeps_its_runtime() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(bound(dir.path()), None);
        fs::write(dir.path().join(FILE), "docker").expect("written");
        fs::create_dir_all(dir.path().join("scratch")).expect("made");
        assert_eq!(bound(dir.path()), None, "without sessions it is free");
        fs::create_dir(dir.path().join("scratch/k")).expect("made");
        assert_eq!(bound(dir.path()), Some(RuntimeChoice::Docker));
        fs::remove_file(dir.path().join(FILE)).expect("removed");
        assert_eq!(
            bound(dir.path()),
            Some(RuntimeChoice::Process),
            "it is older than the choice"
        );
    }
}
