//! The images that this host offers without a registry: its interpreters and compilers, under 19.06 image names.
//!
//! `lablup/python:3.11-host` is the host's Python 3.11. To know a program's version one has to run it, which takes longer
//! than everything else at a start. What is found out is therefore kept, by path and time of change; programs that are
//! scripts (version managers' shims) can change what they lead to without changing themselves and are looked at again
//! once a day. Who wants only one image looks for that one.
//!
//! Invariants: nothing waits longer than the deadline of a look; the first program of a version in the search path wins.
//!
//! Not here: images of container engines (`runtime::docker`), of which this is only the door, and what the process
//! runtime mounts for a program (it finds the program's folder itself).

mod program;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bai_proto::agent::{AgentError, ImageConfig};
use bai_proto::event::AgentImage;
use chrono::{DateTime, Utc};

use self::program::{Cache, Candidate};
use crate::error;
use crate::runtime::docker;
use crate::tasks::blocking;

const REGISTRY: &str = "index.docker.io";
/// The label that names services.
pub(crate) const SERVICE_PORTS: &str = "ai.backend.service-ports";

/// The services of an image that names none: those that may be installed, and a port for whatever a user starts.
pub(crate) fn usual_services(runtime_type: &str) -> &'static str {
    match runtime_type {
        "python" => {
            "jupyter:http:8080,jupyterlab:http:8090,tensorboard:http:6006,ipython:pty:3000,sshd:tcp:2200,web:http:8000"
        }
        _ => "sshd:tcp:2200,web:http:8000",
    }
}

/// Where an agent's images come from.
#[derive(Clone, Debug)]
pub enum Images {
    /// The programs in these folders. With a name, an image that goes by it is enough: looking for all takes longer.
    Host {
        folders: Vec<PathBuf>,
        only: Option<String>,
    },
    /// These.
    Given(Vec<AgentImage>),
    /// Those of a container engine, whatever they are at the time.
    Engine(Arc<docker::Images>),
}

impl Images {
    /// The host's programs in `PATH`, and where the system's are in any case.
    pub fn of_host(only: Option<String>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .collect();
        folders.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
        Self::Host { folders, only }
    }
}

/// The images that the agent has.
#[derive(Debug)]
pub(crate) enum Shelf {
    Fixed(Vec<AgentImage>),
    Engine(Arc<docker::Images>),
}

/// An image that a kernel can be made of.
#[derive(Debug)]
pub(crate) struct Obtained {
    /// What the runtime calls it.
    pub reference: String,
    /// The manager's labels, and above them the image's own.
    pub labels: BTreeMap<String, String>,
}

impl Shelf {
    /// Finds the images. `kept` is the file that remembers what was found out.
    pub async fn fill(source: Images, kept: &Path, now: DateTime<Utc>) -> Self {
        match source {
            Images::Given(images) => Self::Fixed(images),
            Images::Engine(images) => Self::Engine(images),
            Images::Host { folders, only } => Self::Fixed(of_host(folders, only, kept, now).await),
        }
    }

    /// What is offered now; nothing when that cannot be found out.
    pub async fn list(&self) -> Option<Vec<AgentImage>> {
        match self {
            Self::Fixed(images) => Some(images.clone()),
            Self::Engine(images) => images
                .list()
                .await
                .inspect_err(
                    |error| tracing::error!(%error, "the images of the container engine are not known"),
                )
                .ok(),
        }
    }

    /// The image that a kernel is to be made of. `pulling` runs before one is fetched.
    ///
    /// # Errors
    /// `RuntimeError` when the host does not have it and cannot get it.
    pub async fn obtain(
        &self,
        image: &ImageConfig,
        pulling: impl Future<Output = ()>,
    ) -> Result<Obtained, AgentError> {
        let images = match self {
            Self::Fixed(images) => return obtain_fixed(images, image),
            Self::Engine(images) => images,
        };
        let found = images.find(image).await;
        let local = match found.map_err(|error| error::runtime(error.to_string()))? {
            Some(local) => local,
            None => {
                pulling.await;
                let pulled = images.pull(image).await;
                pulled.map_err(|error| error::runtime(error.to_string()))?
            }
        };
        Ok(Obtained {
            reference: local.reference,
            labels: local.labels,
        })
    }

    /// Offers one more image of a container engine.
    ///
    /// # Errors
    /// `RuntimeError` when there is no engine, no such image, or no way to run it.
    pub async fn add(&self, name: &str) -> Result<AgentImage, AgentError> {
        match self {
            Self::Engine(images) => {
                let added = images.add(name).await;
                added.map_err(|error| error::runtime(error.to_string()))
            }
            Self::Fixed(_) => Err(error::runtime(format!(
                "the image {name} cannot be added: sessions of this agent are processes of the host, not containers"
            ))),
        }
    }
}

fn obtain_fixed(images: &[AgentImage], image: &ImageConfig) -> Result<Obtained, AgentError> {
    let Some(found) = images.iter().find(|known| known.canonical == image.canonical) else {
        let known: Vec<&str> = images.iter().map(|known| known.canonical.as_str()).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(error::runtime(format!(
            "this host does not have the image {}; it has: {known}",
            image.canonical
        )));
    };
    let mut labels = image.labels.clone();
    labels.extend(found.labels.clone());
    Ok(Obtained {
        reference: found.canonical.clone(),
        labels,
    })
}

/// The images that are programs of this host.
async fn of_host(
    folders: Vec<PathBuf>,
    only: Option<String>,
    kept: &Path,
    now: DateTime<Utc>,
) -> Vec<AgentImage> {
    let file = kept.to_owned();
    let known = blocking(move || (tools::candidates(&folders), Cache::read(&file))).await;
    let Some((candidates, mut cache)) = known else {
        return Vec::new();
    };
    if let Some(name) = only
        && let Some(found) = find(&candidates, &mut cache, &name, now).await
    {
        return found;
    }
    let is_unsure = |candidate: &&Candidate| !cache.is_sure(candidate, now);
    let unsure: Vec<Candidate> = candidates.iter().filter(is_unsure).cloned().collect();
    if !unsure.is_empty() {
        cache.look(unsure, now).await;
        cache.retain(&candidates);
    }
    let images = images_of(&candidates, &cache);
    let file = kept.to_owned();
    if let Some(Err(error)) = blocking(move || cache.write(&file)).await {
        tracing::warn!(path = %kept.display(), %error, "the list of the host's programs cannot be kept; the next start looks again");
    }
    images
}

/// Looks at one program after the other until there is an image that goes by `name`.
async fn find(
    candidates: &[Candidate],
    cache: &mut Cache,
    name: &str,
    now: DateTime<Utc>,
) -> Option<Vec<AgentImage>> {
    let base = name.rsplit('/').next()?.split(':').next()?;
    for candidate in candidates.iter().filter(|candidate| candidate.tool.goes_by(base)) {
        if !cache.is_sure(candidate, now) {
            cache.look(vec![candidate.clone()], now).await;
        }
        let mut images = images_of(std::slice::from_ref(candidate), cache);
        images.retain(|image| goes_by(image, name));
        if !images.is_empty() {
            return Some(images);
        }
    }
    None
}

fn goes_by(image: &AgentImage, name: &str) -> bool {
    let is_end = image
        .canonical
        .strip_suffix(name)
        .is_some_and(|start| start.is_empty() || start.ends_with('/'));
    is_end || image.aliases.iter().any(|alias| alias == name)
}

/// One image for each language and version, in the order of the programs; the first of a language gets its short names.
fn images_of(candidates: &[Candidate], cache: &Cache) -> Vec<AgentImage> {
    let programs = candidates
        .iter()
        .filter_map(|candidate| Some((candidate, cache.program(candidate)?)));
    let mut languages = BTreeSet::new();
    let mut images: Vec<AgentImage> = Vec::new();
    for (candidate, program) in programs {
        let tool = candidate.tool;
        let version = tool.short_version(&program.version);
        let canonical = format!("{REGISTRY}/lablup/{}:{version}-host", tool.language);
        if images.iter().any(|image| image.canonical == canonical) {
            continue;
        }
        let mut aliases = Vec::new();
        if languages.insert(tool.language) {
            aliases.extend(tool.aliases.iter().map(|alias| (*alias).to_owned()));
        }
        aliases.push(format!("{}:{version}", tool.language));
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let labels = BTreeMap::from([
            label("ai.backend.kernelspec", "1"),
            label("ai.backend.runtime-type", tool.runtime_type),
            label("ai.backend.runtime-path", &program.executable.to_string_lossy()),
            label("ai.backend.features", tool.features),
            label(SERVICE_PORTS, usual_services(tool.runtime_type)),
            label("ai.backend.resource.min.cpu", "1"),
            label("ai.backend.resource.min.mem", "64m"),
        ]);
        let minimum = BTreeMap::from([label("cpu", "1"), label("mem", "64m")]);
        images.push(AgentImage {
            canonical,
            digest: program.digest(),
            labels,
            aliases,
            resource_min: minimum,
        });
    }
    images
}

#[cfg(test)]
mod tests;
