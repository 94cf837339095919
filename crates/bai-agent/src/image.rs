//! The images that this host offers without a registry: its interpreters and compilers, under 19.06 image names.
//!
//! `lablup/python:3.11-host` is the host's Python 3.11. To know a program's version one has to run it. The first start
//! does that, with all programs at the same time; what is found out is kept by path and time of change, so that a later
//! start runs none of them and what has changed since is looked at after the start. Programs that are scripts (version
//! managers' shims) can change what they lead to without changing themselves and are looked at again once a day.
//!
//! Invariants: nothing waits longer than the deadline of a look; the first program of a version in the search path wins.
//!
//! Not here: images of registries, and what the runtime mounts for a program (it finds the program's folder itself).

mod program;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_proto::agent::{AgentError, ImageConfig};
use bai_proto::event::AgentImage;
use tokio::sync::watch;

use self::program::{Cache, Candidate, Program};
use crate::error;
use crate::host::Host;
use crate::tasks::blocking;

/// How long a kernel's creation waits for the rest of the images to be found.
const PATIENCE: Duration = Duration::from_secs(10);
const REGISTRY: &str = "index.docker.io";

/// Where an agent's images come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Images {
    /// The host's programs, looked for in `PATH` and `/usr/bin`.
    Discover,
    /// The host's programs in these folders.
    DiscoverIn(Vec<PathBuf>),
    /// These, or whatever the manager asks for if there are none.
    Given(Vec<AgentImage>),
}

/// The images that the agent has.
#[derive(Debug)]
pub(crate) struct Shelf {
    source: Images,
    images: Mutex<Vec<AgentImage>>,
    is_full: watch::Sender<bool>,
}

/// What is still to be looked at after the start.
#[derive(Debug)]
pub(crate) struct Rest {
    candidates: Vec<Candidate>,
    cache: Cache,
}

impl Shelf {
    pub fn new(source: Images) -> Self {
        let given = match &source {
            Images::Given(images) => images.clone(),
            Images::Discover | Images::DiscoverIn(_) => Vec::new(),
        };
        let is_full = watch::Sender::new(matches!(source, Images::Given(_)));
        Self { source, images: Mutex::new(given), is_full }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AgentImage>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn list(&self) -> Vec<AgentImage> {
        self.lock().clone()
    }

    /// Finds what is needed to begin with: what the cache has, or everything if there is none. The rest is returned.
    pub async fn fill(&self, host: &Host) -> Option<Rest> {
        let folders = match &self.source {
            Images::Given(_) => return None,
            Images::Discover => search_path(),
            Images::DiscoverIn(folders) => folders.clone(),
        };
        let file = host.layout.image_cache.clone();
        let (candidates, mut cache) = blocking(move || (tools::candidates(&folders), Cache::read(&file))).await?;
        if cache.is_empty() {
            cache.look(&host.tasks, candidates.clone(), host.clock.now()).await;
        }
        self.put(&candidates, &cache);
        Some(Rest { candidates, cache })
    }

    /// Looks at everything that is not known for sure. Whether the images have changed.
    pub async fn fill_rest(&self, host: &Host, rest: Rest) -> bool {
        let Rest { candidates, mut cache } = rest;
        let before = self.list();
        let now = host.clock.now();
        let is_unsure = |candidate: &&Candidate| !cache.is_sure(candidate, now);
        let unsure: Vec<Candidate> = candidates.iter().filter(is_unsure).cloned().collect();
        cache.look(&host.tasks, unsure, now).await;
        self.put(&candidates, &cache);
        self.is_full.send_replace(true);
        cache.retain(&candidates);
        let file = host.layout.image_cache.clone();
        if let Some(Err(error)) = blocking(move || cache.write(&file)).await {
            tracing::warn!(%error, "the list of the host's programs cannot be kept; the next start looks again");
        }
        before != self.list()
    }

    fn put(&self, candidates: &[Candidate], cache: &Cache) {
        let programs = candidates.iter().filter_map(|candidate| Some((candidate, cache.program(candidate)?)));
        *self.lock() = images_of(programs);
    }

    /// The labels of the image that a kernel is to be made of: the manager's, and above them this host's own.
    ///
    /// # Errors
    /// `RuntimeError` when the host does not have it.
    pub async fn labels(&self, image: &ImageConfig) -> Result<BTreeMap<String, String>, AgentError> {
        let find = || self.lock().iter().find(|known| known.canonical == image.canonical).cloned();
        let mut found = find();
        if found.is_none() {
            let mut is_full = self.is_full.subscribe();
            // Whether it is full or too late, one more look tells.
            _ = tokio::time::timeout(PATIENCE, is_full.wait_for(|is_full| *is_full)).await;
            found = find();
        }
        match found {
            Some(known) => Ok(image.labels.clone().into_iter().chain(known.labels).collect()),
            None if self.source == Images::Given(Vec::new()) => Ok(image.labels.clone()),
            None => {
                let known: Vec<String> = self.lock().iter().map(|known| known.canonical.clone()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(error::runtime(format!("this host does not have the image {}; it has: {known}", image.canonical)))
            }
        }
    }
}

/// `PATH`, and where the system's programs are in any case.
fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    folders.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    folders
}

/// One image for each language and version, in the order of the programs; the first of a language gets its short names.
fn images_of<'a>(programs: impl Iterator<Item = (&'a Candidate, &'a Program)>) -> Vec<AgentImage> {
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
            label("ai.backend.resource.min.cpu", "1"),
            label("ai.backend.resource.min.mem", "64m"),
        ]);
        let minimum = BTreeMap::from([label("cpu", "1"), label("mem", "64m")]);
        images.push(AgentImage { canonical, digest: program.digest(), labels, aliases, resource_min: minimum });
    }
    images
}

#[cfg(test)]
mod tests;
