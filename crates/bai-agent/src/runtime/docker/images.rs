//! The images of a container engine, as the manager's catalogue wants them.
//!
//! An image that is labelled for Backend.AI (`agent-protocol.md`, appendix A) says itself how it is run, and is offered as
//! it is. Any other image is looked into once, by a container of it that runs nothing but our own program and lists the
//! interpreters; what was found is kept by the image's id. Such an image is offered when somebody has added it, or when a
//! manager asks for it by name.
//!
//! Invariants: no program of an image runs before a session does; one image is pulled once at a time, and who comes
//! second waits for the first; the file with what is known is replaced in one step, and losing it costs a second look.
//!
//! Not here: registries' lists of images (`bai-registry`), and the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bai_proto::agent::ImageConfig;
use bai_proto::event::AgentImage;
use bollard::auth::DockerCredentials;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListImagesOptions, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::engine::{Engine, EngineError, explain};
use super::{Options, container, create, output, remove};
use crate::image::{SERVICE_PORTS, usual_services};
use crate::runtime::RuntimeError;
use crate::tasks::blocking;

/// The registry of names without one, as 19.06 writes it.
const DEFAULT_REGISTRY: &str = "index.docker.io";
const KERNELSPEC: &str = "ai.backend.kernelspec";
const RUNTIME_TYPE: &str = "ai.backend.runtime-type";
const RUNTIME_PATH: &str = "ai.backend.runtime-path";
/// What an unlabelled image can do, as far as we can: all of it.
const FEATURES: &str = "batch query user-input";
const DEFAULT_MINIMUM: [(&str, &str); 2] = [("cpu", "1"), ("mem", "64m")];
/// Runtime types in the order in which they are what an image is for: a compiler or a shell is often there by the way.
const PREFERENCE: [&str; 17] = [
    "python", "nodejs", "golang", "rust", "java", "julia", "r", "ruby", "php", "lua", "octave", "haskell",
    "scheme", "cpp", "c", "perl", "shell",
];
/// A registry that sends nothing for so long has hung up.
const STALL_DEADLINE: Duration = Duration::from_secs(90);
/// Between two lines about a pull in the log.
const PROGRESS_STEP: u64 = 10;

/// Why there is no image to make a session of.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot pull the image {image} from the registry {registry}: {reason}")]
    Pull {
        image: String,
        registry: String,
        reason: String,
    },
    #[error("the engine has no image {0}; pull or build it, or check its name")]
    Unknown(String),
    #[error(
        "the image {0} has no interpreter that sessions know, and no label {RUNTIME_TYPE} that names one; add the label"
    )]
    Mute(String),
    #[error("the image {image} cannot be looked into: {reason}")]
    Look { image: String, reason: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// A name or an id by which the engine makes containers of exactly this image.
    pub reference: String,
    pub labels: BTreeMap<String, String>,
}

/// A pull that goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pull {
    pub image: String,
    /// Bytes that have come, and that are to come as far as the registry has said.
    pub current: u64,
    pub total: u64,
}

/// How an image without labels is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    runtime_type: String,
    runtime_path: String,
}

/// What is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// By the image's id; `None` is an image without interpreters.
    looked: BTreeMap<String, Option<Found>>,
    /// Canonical names of unlabelled images that are offered.
    added: BTreeSet<String>,
}

/// The images of an engine.
#[derive(Debug)]
pub struct Images {
    engine: Engine,
    options: Options,
    file: PathBuf,
    known: Mutex<Known>,
    /// Who looks into, or pulls, an image.
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    pulls: Mutex<BTreeMap<String, Pull>>,
}

impl Images {
    pub(super) async fn open(engine: Engine, options: Options, file: PathBuf) -> Self {
        let kept = file.clone();
        let known = blocking(move || std::fs::read(kept).ok()).await.flatten();
        let known = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            engine,
            options,
            file,
            known: Mutex::new(known.unwrap_or_default()),
            turns: Mutex::default(),
            pulls: Mutex::default(),
        }
    }

    /// The images that are offered: those labelled for Backend.AI, and those that were added.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn list(&self) -> Result<Vec<AgentImage>, EngineError> {
        let call = self.engine.api.list_images(None::<ListImagesOptions>);
        let mut found = self.engine.ask("list images", call).await?;
        // Newest first, so that the short names lead to them.
        found.sort_by_key(|image| std::cmp::Reverse(image.created));
        let known = self.known().clone();
        let mut images: Vec<AgentImage> = Vec::new();
        let mut bases = BTreeSet::new();
        for image in found {
            let labels: BTreeMap<String, String> = image.labels.into_iter().collect();
            for tag in image.repo_tags.iter().filter(|tag| !tag.contains("<none>")) {
                let canonical = canonical(tag);
                let labels = match is_labelled(&labels) {
                    true => Some(labels.clone()),
                    false if known.added.contains(&canonical) => {
                        let found = known.looked.get(&image.id).and_then(Option::as_ref);
                        found.map(|found| completed(&labels, found))
                    }
                    false => None,
                };
                if let Some(labels) = labels {
                    images.push(offered(&canonical, tag, &image.id, labels, &mut bases));
                }
            }
        }
        Ok(images)
    }

    /// Offers an image of the engine from now on, labelled or not, and says as what.
    ///
    /// # Errors
    /// When the engine does not have it, or nobody can tell how to run it.
    pub async fn add(&self, name: &str) -> Result<AgentImage, ImageError> {
        let canonical = canonical(name);
        let image = self.inspect(&canonical).await?;
        let image = image.ok_or_else(|| ImageError::Unknown(name.to_owned()))?;
        let labels = self.labels(&canonical, &image).await?;
        self.change(|known| known.added.insert(canonical.clone())).await;
        let id = image.id.unwrap_or_default();
        Ok(offered(&canonical, name, &id, labels, &mut BTreeSet::new()))
    }

    /// Pulls that go on.
    pub fn pulls(&self) -> Vec<Pull> {
        let pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.values().cloned().collect()
    }

    /// The image that is meant, if the engine has it: an image with the digest that the catalogue knows, by whatever name,
    /// or, where it knows none, one with the name (`agent-protocol.md` 7.7).
    ///
    /// # Errors
    /// When the engine does not answer, or an unlabelled image cannot be looked into.
    pub async fn find(&self, wanted: &ImageConfig) -> Result<Option<Local>, ImageError> {
        let named = self.inspect(&wanted.canonical).await?;
        let is_meant =
            |image: &ImageInspect| wanted.digest.is_empty() || image.id.as_deref() == Some(&wanted.digest);
        let (reference, image) = match named.filter(is_meant) {
            Some(image) => (wanted.canonical.clone(), image),
            None if wanted.digest.is_empty() => return Ok(None),
            None => match self.inspect(&wanted.digest).await? {
                Some(image) => (wanted.digest.clone(), image),
                None => return Ok(None),
            },
        };
        self.local(wanted, reference, &image).await.map(Some)
    }

    /// Pulls an image. One that somebody else is pulling is waited for.
    ///
    /// # Errors
    /// With the image, the registry and what it said.
    pub async fn pull(&self, wanted: &ImageConfig) -> Result<Local, ImageError> {
        let turn = self.turn(&wanted.canonical);
        let _turn = turn.lock().await;
        if let Some(local) = self.find(wanted).await? {
            return Ok(local);
        }
        let outcome = self.fetch(wanted).await;
        self.pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&wanted.canonical);
        outcome.map_err(|error| ImageError::Pull {
            image: wanted.canonical.clone(),
            registry: registry_of(&wanted.canonical).to_owned(),
            reason: reason(error),
        })?;
        let image = self.inspect(&wanted.canonical).await?;
        let image = image.ok_or_else(|| ImageError::Unknown(wanted.canonical.clone()))?;
        if !wanted.digest.is_empty() && image.id.as_deref() != Some(&wanted.digest) {
            tracing::warn!(
                image = wanted.canonical,
                known = wanted.digest,
                pulled = image.id,
                "the registry has another image than the catalogue knows; rescan the registry"
            );
        }
        self.local(wanted, wanted.canonical.clone(), &image).await
    }

    /// The manager's labels, above them the image's own, and what was found where both say nothing.
    async fn local(
        &self,
        wanted: &ImageConfig,
        reference: String,
        image: &ImageInspect,
    ) -> Result<Local, ImageError> {
        let mut labels = wanted.labels.clone();
        labels.extend(labels_of(image));
        if !is_labelled(&labels) {
            labels = self.labels(&wanted.canonical, image).await?;
        }
        Ok(Local { reference, labels })
    }

    /// The labels of an image, completed by what is found in it where it has none of Backend.AI.
    async fn labels(
        &self,
        canonical: &str,
        image: &ImageInspect,
    ) -> Result<BTreeMap<String, String>, ImageError> {
        let labels = labels_of(image);
        if is_labelled(&labels) {
            return Ok(labels);
        }
        let id = image.id.clone().unwrap_or_default();
        let turn = self.turn(&id);
        let _turn = turn.lock().await;
        let known = self.known().looked.get(&id).cloned();
        let found = match known {
            Some(found) => found,
            None => {
                let found = self.look(canonical, &id).await?;
                self.change(|known| known.looked.insert(id.clone(), found.clone()))
                    .await;
                found
            }
        };
        let found = found.ok_or_else(|| ImageError::Mute(canonical.to_owned()))?;
        Ok(completed(&labels, &found))
    }

    /// Lists the interpreters in an image and chooses one.
    async fn look(&self, canonical: &str, id: &str) -> Result<Option<Found>, ImageError> {
        let failed = |reason: String| ImageError::Look {
            image: canonical.to_owned(),
            reason,
        };
        let body = container::describe_look(id, &self.options)
            .map_err(|error: RuntimeError| failed(error.to_string()))?;
        let container = create(&self.engine, None, body).await?;
        let looked = async {
            let api = &self.engine.api;
            let start = api.start_container(&container, None::<StartContainerOptions>);
            self.engine.have("start a container", start).await?;
            let options = WaitContainerOptionsBuilder::new()
                .condition("not-running")
                .build();
            let mut end = api.wait_container(&container, Some(options)).boxed();
            let ended = async { Ok(end.next().await) };
            let ended = self.engine.have("end a container", ended).await?;
            let said = output(&self.engine, &container).await?;
            match ended {
                Some(Ok(_)) => Ok(said),
                _ => Err(failed(said.trim().to_owned())),
            }
        };
        let looked = looked.await;
        remove(&self.engine, &container).await?;
        let found = choose(canonical, &looked?);
        tracing::info!(image = canonical, found = ?found, "looked into an image without labels");
        Ok(found)
    }

    async fn fetch(&self, wanted: &ImageConfig) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::new()
            .from_image(&wanted.canonical)
            .build();
        let registry = &wanted.registry;
        let credentials = registry.username.as_ref().map(|username| DockerCredentials {
            username: Some(username.clone()),
            password: Some(registry.password.clone().unwrap_or_default()),
            serveraddress: Some(registry_of(&wanted.canonical).to_owned()),
            ..DockerCredentials::default()
        });
        tracing::info!(image = wanted.canonical, "pulling an image");
        let mut progress = Progress::default();
        let mut steps = self
            .engine
            .api
            .create_image(Some(options), None, credentials)
            .boxed();
        let late = |_| EngineError::Late {
            what: "get anything from the registry".to_owned(),
            deadline: STALL_DEADLINE,
        };
        while let Some(step) = tokio::time::timeout(STALL_DEADLINE, steps.next())
            .await
            .map_err(late)?
        {
            let step = step.map_err(|error| explain("pull an image", error))?;
            let pull = progress.note(&wanted.canonical, &step);
            self.pulls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(wanted.canonical.clone(), pull);
        }
        tracing::info!(image = wanted.canonical, "pulled an image");
        Ok(())
    }

    async fn inspect(&self, name: &str) -> Result<Option<ImageInspect>, EngineError> {
        match self
            .engine
            .ask("describe an image", self.engine.api.inspect_image(name))
            .await
        {
            Err(error) if error.is_unknown() => Ok(None),
            found => found.map(Some),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and keeps it.
    async fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) {
        let known = {
            let mut known = self.known();
            change(&mut known);
            known.clone()
        };
        let file = self.file.clone();
        if let Some(Err(error)) = blocking(move || write(&file, &known)).await {
            tracing::warn!(path = %self.file.display(), %error, "what was found out about images cannot be kept; the next start looks again");
        }
    }

    fn turn(&self, what: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let existing = turns.get(what).and_then(Weak::upgrade);
        existing.unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(what.to_owned(), Arc::downgrade(&turn));
            turn
        })
    }
}

fn write(file: &Path, known: &Known) -> std::io::Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(known)?)?;
    std::fs::rename(&temporary, file)
}

/// What a pull has brought, layer by layer.
#[derive(Debug, Default)]
struct Progress {
    layers: BTreeMap<String, (u64, u64)>,
    /// Tenths that the log has told.
    told: u64,
}

impl Progress {
    fn note(&mut self, image: &str, step: &CreateImageInfo) -> Pull {
        let is_download = step.status.as_deref() == Some("Downloading");
        if let (true, Some(id), Some(detail)) = (is_download, &step.id, &step.progress_detail) {
            let number = |value: Option<i64>| value.and_then(|value| value.try_into().ok()).unwrap_or(0);
            self.layers
                .insert(id.clone(), (number(detail.current), number(detail.total)));
        } else if let (Some("Download complete"), Some(id)) = (step.status.as_deref(), &step.id)
            && let Some((current, total)) = self.layers.get_mut(id)
        {
            *current = *total;
        }
        let pull = Pull {
            image: image.to_owned(),
            current: self.layers.values().map(|(current, _)| current).sum(),
            total: self.layers.values().map(|(_, total)| total).sum(),
        };
        let share = (pull.current * 100).checked_div(pull.total).unwrap_or(0) / PROGRESS_STEP;
        if share > self.told {
            self.told = share;
            tracing::info!(
                image,
                bytes = pull.current,
                of = pull.total,
                "an image is being pulled"
            );
        }
        pull
    }
}

/// What the engine or the registry said, without what was attempted, which is said already.
fn reason(error: EngineError) -> String {
    match error {
        EngineError::Refused { message, .. } => message,
        error => error.to_string(),
    }
}

fn labels_of(image: &ImageInspect) -> BTreeMap<String, String> {
    let labels = image.config.as_ref().and_then(|config| config.labels.clone());
    labels.unwrap_or_default().into_iter().collect()
}

fn is_labelled(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(KERNELSPEC) || labels.contains_key(RUNTIME_TYPE)
}

fn completed(labels: &BTreeMap<String, String>, found: &Found) -> BTreeMap<String, String> {
    let mut labels = labels.clone();
    for (name, value) in [
        (KERNELSPEC, "1"),
        ("ai.backend.features", FEATURES),
        (RUNTIME_TYPE, &found.runtime_type),
        (RUNTIME_PATH, &found.runtime_path),
    ] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
        .entry(SERVICE_PORTS.to_owned())
        .or_insert_with(|| usual_services(&found.runtime_type).to_owned());
    labels
}

/// One of the interpreters that `bai-runner languages` has listed: that of which the image has its name, or the one that
/// says most about an image.
fn choose(canonical: &str, listed: &str) -> Option<Found> {
    let found: BTreeMap<&str, &str> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
    let name = canonical.rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    let by_name = |kind: &&&str| {
        let goes_by = match **kind {
            "nodejs" => "node",
            kind => kind,
        };
        // One letter is in every name.
        goes_by.len() > 1 && name.contains(goes_by)
    };
    let named = PREFERENCE
        .iter()
        .filter(by_name)
        .find(|kind| found.contains_key(**kind));
    let kind = named.or_else(|| PREFERENCE.iter().find(|kind| found.contains_key(**kind)))?;
    Some(Found {
        runtime_type: (*kind).to_owned(),
        runtime_path: found.get(kind).copied()?.to_owned(),
    })
}

/// The part of a canonical name before its first slash.
fn registry_of(canonical: &str) -> &str {
    canonical.split('/').next().unwrap_or_default()
}

/// The 19.06 name (`agent-protocol.md`, appendix C) of an image that Docker calls `name`.
fn canonical(name: &str) -> String {
    let tagged = match name.rsplit('/').next() {
        Some(last) if last.contains(':') => name.to_owned(),
        _ => format!("{name}:latest"),
    };
    match tagged.split_once('/') {
        Some(("docker.io" | DEFAULT_REGISTRY, rest)) if rest.contains('/') => {
            format!("{DEFAULT_REGISTRY}/{rest}")
        }
        Some(("docker.io" | DEFAULT_REGISTRY, rest)) => format!("{DEFAULT_REGISTRY}/library/{rest}"),
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => tagged,
        Some(_) => format!("{DEFAULT_REGISTRY}/{tagged}"),
        None => format!("{DEFAULT_REGISTRY}/library/{tagged}"),
    }
}

/// An image as the catalogue wants it. `bases` are names that lead to images before this one.
fn offered(
    canonical: &str,
    tag: &str,
    id: &str,
    labels: BTreeMap<String, String>,
    bases: &mut BTreeSet<String>,
) -> AgentImage {
    let last = canonical.rsplit('/').next().unwrap_or_default();
    let base = last.split(':').next().unwrap_or_default();
    let mut aliases = Vec::new();
    if bases.insert(base.to_owned()) {
        aliases.push(base.to_owned());
    }
    for name in [last, tag] {
        if name != canonical && !aliases.iter().any(|alias| alias == name) {
            aliases.push(name.to_owned());
        }
    }
    let mut resource_min: BTreeMap<String, String> = DEFAULT_MINIMUM
        .iter()
        .map(|(slot, amount)| ((*slot).to_owned(), (*amount).to_owned()))
        .collect();
    let minima = labels.iter().filter_map(|(label, amount)| {
        let slot = label.strip_prefix("ai.backend.resource.min.")?;
        Some((slot.to_owned(), amount.clone()))
    });
    resource_min.extend(minima);
    AgentImage {
        canonical: canonical.to_owned(),
        digest: id.to_owned(),
        labels,
        aliases,
        resource_min,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_docker_become_canonical() {
        for (name, expected) in [
            ("python:3.11", "index.docker.io/library/python:3.11"),
            ("python", "index.docker.io/library/python:latest"),
            ("lablup/python:3.6", "index.docker.io/lablup/python:3.6"),
            ("docker.io/lablup/python:3.6", "index.docker.io/lablup/python:3.6"),
            (
                "index.docker.io/lablup/python:3.6",
                "index.docker.io/lablup/python:3.6",
            ),
            ("docker.io/python:3", "index.docker.io/library/python:3"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("registry.example.org/a/b", "registry.example.org/a/b:latest"),
            ("localhost/a:b", "localhost/a:b"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }

    #[test]
    fn an_interpreter_is_chosen_by_name_and_then_by_what_says_most() {
        let kind = |name: &str, listed: &str| choose(name, listed).map(|found| found.runtime_type);
        let all = "python\t/usr/bin/python3\nshell\t/bin/sh\nc\t/usr/bin/gcc\ngolang\t/usr/local/go/bin/go\nperl\t/usr/bin/perl\n";
        assert_eq!(
            kind("index.docker.io/library/golang:1.22", all).as_deref(),
            Some("golang")
        );
        assert_eq!(
            kind("index.docker.io/library/gcc:13", all).as_deref(),
            Some("python")
        );
        assert_eq!(kind("x/perl:5", all).as_deref(), Some("perl"));
        assert_eq!(
            kind("x/debian:12", "shell\t/bin/sh\nperl\t/usr/bin/perl\n").as_deref(),
            Some("perl")
        );
        assert_eq!(kind("x/busybox:1", "shell\t/bin/sh\n").as_deref(), Some("shell"));
        assert_eq!(kind("x/scratch:1", ""), None);
    }

    #[test]
    fn an_image_says_what_it_needs_and_goes_by_short_names() {
        let labels = BTreeMap::from([("ai.backend.resource.min.mem".to_owned(), "256m".to_owned())]);
        let mut bases = BTreeSet::new();
        let mut make = |tag: &str| offered(&canonical(tag), tag, "sha256:1", labels.clone(), &mut bases);
        let image = make("lablup/python:3.6");
        assert_eq!(image.aliases, ["python", "python:3.6", "lablup/python:3.6"]);
        assert_eq!(
            (
                image.resource_min["cpu"].as_str(),
                image.resource_min["mem"].as_str()
            ),
            ("1", "256m")
        );
        assert_eq!(
            make("other/python:3.7").aliases,
            ["python:3.7", "other/python:3.7"]
        );
    }

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let mut progress = Progress::default();
        let mut step = |id: &str, status: &str, current: i64, total: i64| {
            let json = serde_json::json!({
                "id": id, "status": status, "progressDetail": {"current": current, "total": total},
            });
            progress.note("x", &serde_json::from_value(json).expect("a step"))
        };
        step("a", "Pulling fs layer", 0, 0);
        step("a", "Downloading", 10, 100);
        step("b", "Downloading", 5, 50);
        step("b", "Extracting", 1, 50);
        let pull = step("a", "Download complete", 0, 0);
        assert_eq!((pull.current, pull.total), (105, 150));
    }
}
