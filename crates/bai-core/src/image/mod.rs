//! The image catalogue in the configuration store: resolution of names and aliases, slot ranges, and the images that
//! agents bring themselves (`http-api.md` 5.6, 5.9; `data-model.md` 12, 13).
//!
//! [`Catalogue`] holds what administrators do to it, and needs nothing but the configuration store, so that commands
//! can do it beside running managers. What a [`Manager`] needs of images is here.
//!
//! Invariants: keys and values are the original's, byte for byte; an image is written by one transaction that shows it
//! whole; nothing is removed because a registry did not answer.

mod add;
mod alias;
mod limit;
mod record;
mod rescan;

use std::hash::Hash;
use std::sync::Arc;

use bai_backplane::config::Config;
use bai_model::image_ref::{quote, unquote};
use bai_model::time::Clock;
use bai_model::{ImageRef, ResourceSlot, SlotTypes, SlotValue};
use bai_proto::agent::{ImageConfig, RegistryConfig};
use bai_proto::event::AgentImage;
use tokio::sync::{Mutex, MutexGuard};

use crate::fresh::{Fresh, Reading};
use crate::{Actor, Error, Manager, Op, Result};

pub use add::AddedImage;
pub use alias::Alias;
pub use record::{ImageRecord, ResourceLimit};
pub use rescan::{ImageChange, ImageOutcome, RegistryScan, Rescan, RescanEvent, RescanSummary};

/// Characters of `kernels.image`.
const MAX_REFERENCE: usize = 512;
/// Aliases may lead to aliases this many times.
const MAX_ALIAS_HOPS: usize = 8;
/// What is below this names registries.
pub(crate) const REGISTRIES: &str = "config/docker/registry/";

/// The image catalogue, as administrators see it.
#[derive(Clone, Debug)]
pub struct Catalogue {
    config: Config,
    registries: bai_registry::Options,
    known: Arc<Known>,
}

/// What creations of sessions have read of the catalogue, for the next ones: believed for two seconds, or until it is
/// changed here.
#[derive(Debug, Default)]
struct Known {
    /// By what users write.
    references: Fresh<ImageRef, String>,
    images: Fresh<Arc<Image>, ImageRef>,
    /// Whoever finds nothing reads, and the others wait for that.
    reading: Mutex<()>,
}

/// The turn at reading what is not known.
struct Turn<'a> {
    reading: Reading,
    _guard: MutexGuard<'a, ()>,
}

impl Known {
    /// What is known of `key` in one of its parts, or the turn at reading it.
    async fn look<T: Clone, K: Eq + Hash>(
        &self,
        part: &Fresh<T, K>,
        key: &K,
        clock: &dyn Clock,
    ) -> std::result::Result<T, Turn<'_>> {
        if let Ok(known) = part.get_of(key, clock.now()) {
            return Ok(known);
        }
        let guard = self.reading.lock().await;
        part.get_of(key, clock.now()).map_err(|reading| Turn {
            reading,
            _guard: guard,
        })
    }
}

/// What the catalogue says of an image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub reference: ImageRef,
    pub config: ImageConfig,
    /// Amounts below which a session cannot run; 0 where nothing is said.
    pub minimum: ResourceSlot,
    /// Amounts above which a session may not ask; infinite where nothing is said.
    pub maximum: ResourceSlot,
}

impl Catalogue {
    /// The catalogue in `config`, filled from registries that are talked to as `registries` says.
    pub fn new(config: Config, registries: bai_registry::Options) -> Self {
        Self {
            config,
            registries,
            known: Arc::default(),
        }
    }

    /// The same, with other certificates believed.
    #[must_use]
    pub fn trusting(mut self, trust: bai_registry::Trust) -> Self {
        self.registries.trust = trust;
        self
    }

    /// Follows aliases and parses the reference that they lead to. Says nothing of the image's existence.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for a malformed reference or aliases that lead in circles.
    pub(crate) async fn resolve(&self, text: &str) -> Result<ImageRef> {
        if text.chars().count() > MAX_REFERENCE {
            return Err(Error::invalid(format!(
                "An image reference must have at most {MAX_REFERENCE} characters"
            )));
        }
        let mut text = text.to_owned();
        for _ in 0..=MAX_ALIAS_HOPS {
            let target = match self.config.get(&alias::key(&text)).await? {
                Some(target) => Some(target),
                // Old data may hold unquoted keys.
                None => self.config.get(&alias::raw_key(&text)).await?,
            };
            match target {
                Some(target) => text = target,
                None => return parse(&text, &self.known_registries().await?),
            }
        }
        Err(Error::invalid(format!("The image alias {text} leads to itself")))
    }

    /// It has changed, or may have: what was read before is not believed any more.
    pub(crate) fn forget(&self) {
        self.known.references.forget();
        self.known.images.forget();
    }

    pub(crate) async fn known_registries(&self) -> Result<Vec<String>> {
        let names = self.config.children(REGISTRIES).await?;
        Ok(names.into_keys().map(|name| unquote(&name)).collect())
    }
}

/// A reference as a user writes it.
fn parse(text: &str, registries: &[String]) -> Result<ImageRef> {
    ImageRef::parse(text, registries)
        .map_err(|error| Error::invalid(format!("Invalid image reference: {text}: {error}")))
}

/// Changing the catalogue is for superadmins, and for commands that run where the configuration store can be
/// opened.
fn check_administrator(op: &Op) -> Result<()> {
    match &op.actor {
        Actor::System(_) => Ok(()),
        Actor::Keypair(identity) if identity.is_superadmin() => Ok(()),
        Actor::Keypair(_) => Err(Error::Forbidden("Only superadmins may change images.".to_owned())),
        Actor::Anonymous => Err(Error::Unauthorized(None)),
    }
}

/// Everybody with a keypair sees all images.
fn check_known(op: &Op) -> Result<()> {
    match &op.actor {
        Actor::System(_) | Actor::Keypair(_) => Ok(()),
        Actor::Anonymous => Err(Error::Unauthorized(None)),
    }
}

impl Manager {
    /// What administrators do to images.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// As [`Catalogue::resolve`], from what was known two seconds ago.
    pub(crate) async fn resolve_image(&self, text: &str) -> Result<ImageRef> {
        let (known, key) = (&self.catalogue.known, text.to_owned());
        let turn = match known.look(&known.references, &key, self.clock.as_ref()).await {
            Ok(reference) => return Ok(reference),
            Err(turn) => turn,
        };
        let reference = self.catalogue.resolve(text).await?;
        known.references.put_of(key, turn.reading, reference.clone());
        Ok(reference)
    }

    /// What the catalogue says of `reference`, or said two seconds ago; `None` when it does not have it.
    pub(crate) async fn image(&self, reference: &ImageRef) -> Result<Option<Arc<Image>>> {
        let known = &self.catalogue.known;
        let turn = match known.look(&known.images, reference, self.clock.as_ref()).await {
            Ok(image) => return Ok(Some(image)),
            Err(turn) => turn,
        };
        let types = self.slot_types().await?;
        let image = self.read_image(reference.clone(), &types).await?.map(Arc::new);
        if let Some(image) = &image {
            known
                .images
                .put_of(reference.clone(), turn.reading, Arc::clone(image));
        }
        Ok(image)
    }

    async fn read_image(&self, reference: ImageRef, types: &SlotTypes) -> Result<Option<Image>> {
        let Some(record) = self.catalogue.record(&reference).await? else {
            return Ok(None);
        };
        let mut minimum = ResourceSlot::default();
        let mut maximum = ResourceSlot::default();
        for name in types.names() {
            minimum.set(name, SlotValue::ZERO);
            maximum.set(name, SlotValue::Infinity);
        }
        for (slot, limit) in &record.resource_limits {
            let Some(unit) = types.unit(slot) else { continue };
            for (bound, text, range) in [
                ("min", &limit.min, &mut minimum),
                ("max", &limit.max, &mut maximum),
            ] {
                match text.as_deref().map(|text| SlotValue::parse(text, unit)) {
                    Some(Ok(amount)) => range.set(slot, amount),
                    Some(Err(error)) => {
                        tracing::warn!(image = %reference, slot, bound, %error, "ignoring a malformed limit in the image catalogue")
                    }
                    None => {}
                }
            }
        }
        let registry = format!("{REGISTRIES}{}", quote(&reference.registry));
        let registry = RegistryConfig {
            url: self.config.get(&registry).await?.unwrap_or_default(),
            username: self.config.get(&format!("{registry}/username")).await?,
            password: self.config.get(&format!("{registry}/password")).await?,
            name: reference.registry.clone(),
        };
        let config = ImageConfig {
            canonical: reference.canonical(),
            digest: record.digest,
            labels: record.labels,
            registry,
        };
        Ok(Some(Image {
            reference,
            config,
            minimum,
            maximum,
        }))
    }

    /// Puts images that an agent brings into the catalogue, with their aliases. An alias that an administrator set
    /// stays as it is.
    pub(crate) async fn register_agent_images(&self, images: &[AgentImage]) -> Result<()> {
        let mut entries: Vec<(String, String)> = Vec::new();
        let registries = self.catalogue.known_registries().await?;
        for image in images {
            let reference = match ImageRef::parse(&image.canonical, &registries) {
                Ok(reference) => reference,
                Err(error) => {
                    tracing::warn!(image = image.canonical, %error, "ignoring an image with a malformed name");
                    continue;
                }
            };
            let path = reference.tag_path();
            entries.push((
                format!("images/{}/{}", quote(&reference.registry), quote(&reference.name)),
                "1".to_owned(),
            ));
            entries.push((path.clone(), image.digest.clone()));
            for (label, value) in &image.labels {
                entries.push((format!("{path}/labels/{label}"), value.clone()));
            }
            for (slot, minimum) in &image.resource_min {
                entries.push((format!("{path}/resource/{slot}/min"), minimum.clone()));
            }
            for name in &image.aliases {
                let key = alias::key(name);
                let taken = entries.iter().any(|(other, _)| *other == key);
                if !taken && self.config.get(&key).await?.is_none() {
                    entries.push((key, image.canonical.clone()));
                }
            }
        }
        let mut changed = Vec::new();
        for (key, value) in entries {
            if self.config.get(&key).await?.as_deref() != Some(&value) {
                changed.push((key, value));
            }
        }
        if !changed.is_empty() {
            self.config.put_all(&changed).await?;
            self.catalogue.forget();
        }
        Ok(())
    }
}
