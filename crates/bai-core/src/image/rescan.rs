//! Bringing the catalogue up to date with the registries (`http-api.md` 5.10, Q-34).
//!
//! Invariants: an image is written by itself, whole, and only when it differs; what a registry does not answer for stays
//! as it was; images are never removed; limits that an administrator set (`resource/<slot>/max`) are not touched. Rescans
//! may be killed and repeated at any point.
//!
//! Not here: how a registry is asked (`bai-registry`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bai_backplane::config::Config;
use bai_backplane::kv::{MAX_TXN_OPS, Txn};
use bai_model::ImageRef;
use bai_model::image_ref::{quote, unquote};
use bai_registry::{Address, Cause, Registry, Repository};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::record::reference;
use super::{Catalogue, REGISTRIES, check_administrator};
use crate::{Error, Op, Result};

/// Repositories whose tags are listed at once.
const LISTINGS: usize = 8;
/// Images that are asked for at once; the client bounds the requests.
const IMAGES: usize = 16;
/// Images of one registry that a rescan looks at.
const MAX_IMAGES: usize = 200_000;
/// Images that cannot be reached one after the other before the registry is given up.
const MAX_UNREACHABLE: usize = 32;
/// How long one registry may take.
const DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);
/// Marks the images that sessions can run.
const KERNEL_LABEL: &str = "ai.backend.kernelspec";
const ACCELERATORS_LABEL: &str = "ai.backend.accelerators";
const MINIMUM_LABEL: &str = "ai.backend.resource.min.";

/// What is to be rescanned.
#[derive(Clone, Debug, Default)]
pub struct Rescan {
    /// One registry by its name; all when `None`.
    pub registry: Option<String>,
    /// Say what would change, and change nothing.
    pub dry_run: bool,
}

/// What a rescan has just found out.
#[derive(Clone, Copy, Debug)]
pub enum RescanEvent<'a> {
    /// A registry's listing is complete: so many images will be looked at.
    Listed {
        registry: &'a str,
        repositories: usize,
        images: usize,
    },
    /// An image, or a repository that could not be listed.
    Image(&'a ImageOutcome),
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageOutcome {
    /// The canonical reference, or `registry/repository` of one that could not be listed.
    pub image: String,
    #[serde(flatten)]
    pub change: ImageChange,
}

/// What a rescan did, or in a dry run would do, to an image in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", content = "reason", rename_all = "kebab-case")]
pub enum ImageChange {
    Added,
    Updated,
    Unchanged,
    /// It has no label that says that sessions can run it.
    NoKernel,
    /// Its tag is none that references can have.
    Malformed(String),
    /// It could not be looked at; the catalogue keeps what it had.
    Failed(String),
}

/// What became of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegistryScan {
    pub registry: String,
    pub repositories: usize,
    pub added: usize,
    pub updated: usize,
    pub unchanged: usize,
    pub no_kernel: usize,
    pub malformed: usize,
    pub failed: usize,
    /// All but those unchanged and those that are no kernels.
    pub images: Vec<ImageOutcome>,
    /// Why the registry could not be scanned, or not to the end.
    pub error: Option<String>,
}

/// What became of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RescanSummary {
    pub registries: Vec<RegistryScan>,
}

impl RescanSummary {
    /// Whether everything could be looked at.
    pub fn is_complete(&self) -> bool {
        self.registries
            .iter()
            .all(|scan| scan.error.is_none() && scan.failed == 0)
    }
}

impl RegistryScan {
    fn note(&mut self, outcome: ImageOutcome) {
        let (count, is_news) = match &outcome.change {
            ImageChange::Added => (&mut self.added, true),
            ImageChange::Updated => (&mut self.updated, true),
            ImageChange::Unchanged => (&mut self.unchanged, false),
            ImageChange::NoKernel => (&mut self.no_kernel, false),
            ImageChange::Malformed(_) => (&mut self.malformed, true),
            ImageChange::Failed(_) => (&mut self.failed, true),
        };
        *count += 1;
        if is_news {
            self.images.push(outcome);
        }
    }
}

/// Told what happens while it happens; must not block.
type Progress<'p> = &'p (dyn Fn(RescanEvent<'_>) + Send + Sync);

impl Catalogue {
    /// Looks at every image of one registry or of all, and writes what sessions can run into the catalogue. What fails is
    /// reported for the image or registry that it is about, and stops nothing else; nothing is logged, the caller tells.
    /// For superadmins.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others; [`Error::InvalidParameters`] when nothing of that name is configured;
    /// [`Error::ServiceUnavailable`] when the configuration store fails.
    pub async fn image_rescan(
        &self,
        op: &Op,
        rescan: &Rescan,
        progress: Progress<'_>,
    ) -> Result<RescanSummary> {
        check_administrator(op)?;
        let mut addresses = self.addresses().await?;
        if let Some(wanted) = &rescan.registry {
            let known: Vec<String> = addresses.iter().map(|address| address.name.clone()).collect();
            addresses.retain(|address| address.name == *wanted);
            if addresses.is_empty() {
                return Err(Error::invalid(format!(
                    "Unknown registry: {wanted} (configured: {}); put its URL at {REGISTRIES}{}",
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    },
                    quote(wanted)
                )));
            }
        }
        let scans = addresses
            .into_iter()
            .map(|address| self.scan(address, rescan.dry_run, progress));
        let scanned = join_all(scans).await;
        self.forget();
        let registries = scanned.into_iter().collect::<Result<_>>()?;
        Ok(RescanSummary { registries })
    }

    /// The configured registries, in the order of their names.
    async fn addresses(&self) -> Result<Vec<Address>> {
        let mut addresses = Vec::new();
        for (name, url) in self.config.children(REGISTRIES).await? {
            // A name with settings below it and no URL of its own is no registry yet.
            let Some(url) = url.filter(|url| !url.is_empty()) else {
                continue;
            };
            let setting =
                async |setting: &str| self.config.get(&format!("{REGISTRIES}{name}/{setting}")).await;
            addresses.push(Address {
                url,
                username: setting("username").await?,
                password: setting("password").await?.map(Into::into),
                name: unquote(&name),
            });
        }
        Ok(addresses)
    }

    /// Looks at one registry. Its own failures are part of the answer; only those of the configuration store are errors.
    async fn scan(&self, address: Address, dry_run: bool, progress: Progress<'_>) -> Result<RegistryScan> {
        let mut scan = RegistryScan {
            registry: address.name.clone(),
            ..RegistryScan::default()
        };
        let end = Instant::now() + DEADLINE;
        let listed = timeout_at(end, list(address, &self.registries, &mut scan, progress)).await;
        let images = match listed {
            Ok(Ok(images)) => images,
            Ok(Err(error)) => {
                scan.error = Some(error.to_string());
                return Ok(scan);
            }
            Err(_) => {
                scan.error = Some(format!("registry {}: its lists took too long", scan.registry));
                return Ok(scan);
            }
        };
        progress(RescanEvent::Listed {
            registry: &scan.registry,
            repositories: scan.repositories,
            images: images.len(),
        });
        let prefix = format!("images/{}/", quote(&scan.registry));
        let stored: Arc<BTreeMap<String, String>> =
            Arc::new(self.config.prefix(&prefix).await?.into_iter().collect());
        let mut outcomes = stream::iter(images)
            .map(|(repository, tag)| look(self.config.clone(), Arc::clone(&stored), repository, tag, dry_run))
            .buffer_unordered(IMAGES);
        let mut unreachable = 0;
        loop {
            match timeout_at(end, outcomes.next()).await {
                Ok(None) => return Ok(scan),
                Ok(Some(outcome)) => {
                    let Looked {
                        outcome,
                        was_unreachable,
                    } = outcome?;
                    progress(RescanEvent::Image(&outcome));
                    scan.note(outcome);
                    unreachable = if was_unreachable { unreachable + 1 } else { 0 };
                    if unreachable >= MAX_UNREACHABLE {
                        scan.error = Some(format!(
                            "registry {}: given up after {unreachable} images in a row could not be reached",
                            scan.registry
                        ));
                        return Ok(scan);
                    }
                }
                Err(_) => {
                    scan.error = Some(format!(
                        "registry {}: not finished within {} minutes; rescan again for the rest",
                        scan.registry,
                        DEADLINE.as_secs() / 60
                    ));
                    return Ok(scan);
                }
            }
        }
    }
}

/// All images of a registry: repositories with tags. A repository that cannot be listed is noted in `scan`.
async fn list(
    address: Address,
    options: &bai_registry::Options,
    scan: &mut RegistryScan,
    progress: Progress<'_>,
) -> bai_registry::Result<Vec<(Arc<Repository>, String)>> {
    let registry = Registry::connect(address, options).await?;
    let names = registry.repositories().await?;
    scan.repositories = names.len();
    let mut listings = stream::iter(names)
        .map(|name| tags(Arc::clone(&registry), name))
        .buffer_unordered(LISTINGS);
    let mut images = Vec::new();
    while let Some((name, listing)) = listings.next().await {
        match listing {
            Ok((repository, tags)) => {
                images.extend(tags.into_iter().map(|tag| (Arc::clone(&repository), tag)));
            }
            Err(error) => {
                let outcome = ImageOutcome {
                    image: format!("{}/{name}", registry.name()),
                    change: ImageChange::Failed(error.to_string()),
                };
                progress(RescanEvent::Image(&outcome));
                scan.note(outcome);
            }
        }
        if images.len() > MAX_IMAGES {
            let cause = Cause::Unsupported(format!("has more than {MAX_IMAGES} images"));
            return Err(bai_registry::Error {
                registry: registry.name().to_owned(),
                subject: String::new(),
                cause,
            });
        }
    }
    Ok(images)
}

type Listing = bai_registry::Result<(Arc<Repository>, Vec<String>)>;

async fn tags(registry: Arc<Registry>, name: String) -> (String, Listing) {
    let listing = async {
        let repository = Arc::new(registry.repository(&name).await?);
        let tags = repository.tags().await?;
        Ok((repository, tags))
    };
    let listing = listing.await;
    (name, listing)
}

/// An image that was looked at.
struct Looked {
    outcome: ImageOutcome,
    was_unreachable: bool,
}

/// Looks at one image and writes it.
async fn look(
    config: Config,
    stored: Arc<BTreeMap<String, String>>,
    repository: Arc<Repository>,
    tag: String,
    dry_run: bool,
) -> Result<Looked> {
    let (registry, name) = (repository.registry_name(), repository.name());
    let image = format!("{registry}/{name}:{tag}");
    let done = |change, was_unreachable| {
        let outcome = ImageOutcome {
            image: image.clone(),
            change,
        };
        Ok(Looked {
            outcome,
            was_unreachable,
        })
    };
    let reference = match reference(registry, name, &tag) {
        Ok(reference) => reference,
        Err(reason) => {
            return done(ImageChange::Malformed(reason), false);
        }
    };
    match repository.image(&tag).await {
        Ok(found) if found.labels.get(KERNEL_LABEL).is_none_or(String::is_empty) => {
            done(ImageChange::NoKernel, false)
        }
        Ok(found) => done(write(&config, &reference, &found, &stored, dry_run).await?, false),
        Err(error) => {
            let was_unreachable = matches!(error.cause, Cause::Unreachable(_) | Cause::TimedOut);
            done(ImageChange::Failed(error.to_string()), was_unreachable)
        }
    }
}

/// Writes an image so that no reader sees a part of it: in one transaction, or where it has more labels than one
/// takes, with the digest, which makes it exist, in the last. Says what it did, or would do.
async fn write(
    config: &Config,
    reference: &ImageRef,
    image: &bai_registry::Image,
    stored: &BTreeMap<String, String>,
    dry_run: bool,
) -> Result<ImageChange> {
    let path = reference.tag_path();
    let wanted = entries(reference, image);
    let puts = wanted
        .iter()
        .filter(|(key, value)| stored.get(*key) != Some(value) && **key != path)
        .map(|(key, value)| (key, Some(value)));
    let stale = stale(&path, &wanted, stored);
    let mut ops: Vec<(&String, Option<&String>)> =
        puts.chain(stale.into_iter().map(|key| (key, None))).collect();
    if ops.is_empty() && stored.get(&path) == Some(&image.digest) {
        return Ok(ImageChange::Unchanged);
    }
    ops.push((&path, Some(&image.digest)));
    if !dry_run {
        for chunk in ops.chunks(MAX_TXN_OPS) {
            let txn = chunk.iter().fold(Txn::new(), |txn, (key, value)| match value {
                Some(value) => txn.put(*key, *value),
                None => txn.delete(*key),
            });
            config.transact(txn).await?;
        }
    }
    if stored.contains_key(&path) {
        Ok(ImageChange::Updated)
    } else {
        Ok(ImageChange::Added)
    }
}

/// The keys and values that stand for an image, as the original writes them.
fn entries(reference: &ImageRef, image: &bai_registry::Image) -> BTreeMap<String, String> {
    let path = reference.tag_path();
    let marker = format!("images/{}/{}", quote(&reference.registry), quote(&reference.name));
    let mut entries = BTreeMap::from([
        (marker, "1".to_owned()),
        (path.clone(), image.digest.clone()),
        (format!("{path}/size_bytes"), image.size_bytes.to_string()),
    ]);
    for (label, value) in &image.labels {
        entries.insert(format!("{path}/labels/{label}"), value.clone());
        if let Some(slot) = label.strip_prefix(MINIMUM_LABEL)
            && !slot.is_empty()
            && !slot.contains('/')
        {
            entries.insert(format!("{path}/resource/{slot}/min"), value.clone());
        }
    }
    if let Some(accelerators) = image.labels.get(ACCELERATORS_LABEL) {
        entries.insert(format!("{path}/accels"), accelerators.clone());
    }
    entries
}

/// What the catalogue got from labels that the image no longer has.
fn stale<'s>(
    path: &str,
    wanted: &BTreeMap<String, String>,
    stored: &'s BTreeMap<String, String>,
) -> Vec<&'s String> {
    let prefix = format!("{path}/");
    let labels = format!("{prefix}labels/");
    let mut stale = Vec::new();
    for (key, value) in stored.range(prefix.clone()..) {
        let Some(below) = key.strip_prefix(&prefix) else {
            break;
        };
        if wanted.contains_key(key) {
            continue;
        }
        let came_from_label = match below
            .strip_prefix("resource/")
            .and_then(|rest| rest.strip_suffix("/min"))
        {
            Some(slot) => stored.get(&format!("{labels}{MINIMUM_LABEL}{slot}")) == Some(value),
            None => below.starts_with("labels/") || below == "accels",
        };
        if came_from_label {
            stale.push(key);
        }
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
        lines
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_keys_of_an_image_are_the_originals() {
        let image = bai_registry::Image {
            digest: "sha256:70f7".to_owned(),
            size_bytes: 137_327_003,
            labels: map(&[
                ("ai.backend.kernelspec", "1"),
                ("ai.backend.accelerators", "cuda"),
                ("ai.backend.resource.min.mem", "256m"),
                ("ai.backend.resource.min.", "no slot"),
                ("ai.backend.resource.min.a/b", "no slot"),
            ]),
        };
        let reference = reference("127.0.0.1:15000", "lablup/python", "3.6-debian").unwrap();
        let image_path = "images/127.0.0.1%3A15000/lablup%2Fpython";
        let path = format!("{image_path}/3.6-debian");
        let label = |name: &str| format!("{path}/labels/ai.backend.{name}");
        let expected = BTreeMap::from([
            (image_path.to_owned(), "1".to_owned()),
            (path.clone(), "sha256:70f7".to_owned()),
            (format!("{path}/accels"), "cuda".to_owned()),
            (label("accelerators"), "cuda".to_owned()),
            (label("kernelspec"), "1".to_owned()),
            (label("resource.min.mem"), "256m".to_owned()),
            (label("resource.min."), "no slot".to_owned()),
            (label("resource.min.a/b"), "no slot".to_owned()),
            (format!("{path}/resource/mem/min"), "256m".to_owned()),
            (format!("{path}/size_bytes"), "137327003".to_owned()),
        ]);
        assert_eq!(entries(&reference, &image), expected);
    }

    #[test]
    fn only_what_came_from_lost_labels_is_stale() {
        let stored = map(&[
            ("i/r/3.6", "sha256:1"),
            ("i/r/3.6-debian/labels/other", "1"),
            ("i/r/3.6/accelerators", "set by hand"),
            ("i/r/3.6/accels", "cuda"),
            ("i/r/3.6/labels/ai.backend.resource.min.cpu", "1"),
            ("i/r/3.6/labels/ai.backend.resource.min.mem", "64m"),
            ("i/r/3.6/labels/kept", "1"),
            ("i/r/3.6/labels/lost", "1"),
            ("i/r/3.6/resource/cpu/max", "4"),
            ("i/r/3.6/resource/cpu/min", "2"),
            ("i/r/3.6/resource/mem/min", "64m"),
            ("i/r/3.6/size_bytes", "1"),
        ]);
        let wanted = map(&[("i/r/3.6/labels/kept", "2")]);
        let expected = [
            "i/r/3.6/accels",
            "i/r/3.6/labels/ai.backend.resource.min.cpu",
            "i/r/3.6/labels/ai.backend.resource.min.mem",
            "i/r/3.6/labels/lost",
            "i/r/3.6/resource/mem/min",
        ];
        assert_eq!(stale("i/r/3.6", &wanted, &stored), expected);
    }
}
