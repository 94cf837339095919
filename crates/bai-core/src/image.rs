//! The image catalogue in the configuration store: resolution of names and aliases, slot ranges, and the images that
//! agents bring themselves (`http-api.md` 5.6, 5.9; `data-model.md` 12, 13).

use std::collections::BTreeMap;

use bai_model::image_ref::{quote, unquote};
use bai_model::{ImageRef, ResourceSlot, SlotTypes, SlotValue};
use bai_proto::agent::{ImageConfig, RegistryConfig};
use bai_proto::event::AgentImage;

use crate::{Error, Manager, Result};

/// Characters of `kernels.image`.
const MAX_REFERENCE: usize = 512;
/// Aliases may lead to aliases this many times.
const MAX_ALIAS_HOPS: usize = 8;

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

impl Manager {
    /// Follows aliases and parses the reference that they lead to. Says nothing of the image's existence.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for a malformed reference or aliases that lead in circles.
    pub(crate) async fn resolve_image(&self, text: &str) -> Result<ImageRef> {
        if text.chars().count() > MAX_REFERENCE {
            return Err(Error::invalid(format!(
                "An image reference must have at most {MAX_REFERENCE} characters"
            )));
        }
        let mut text = text.to_owned();
        for _ in 0..=MAX_ALIAS_HOPS {
            let target = match self
                .config
                .get(&format!("images/_aliases/{}", quote(&text)))
                .await?
            {
                Some(target) => Some(target),
                // Old data may hold unquoted keys.
                None => self.config.get(&format!("images/_aliases/{text}")).await?,
            };
            match target {
                Some(target) => text = target,
                None => {
                    let registries = self.known_registries().await?;
                    return ImageRef::parse(&text, &registries).map_err(|error| {
                        Error::invalid(format!("Invalid image reference: {text}: {error}"))
                    });
                }
            }
        }
        Err(Error::invalid(format!("The image alias {text} leads to itself")))
    }

    async fn known_registries(&self) -> Result<Vec<String>> {
        const PREFIX: &str = "config/docker/registry/";
        let mut names: Vec<String> = Vec::new();
        for (key, _) in self.config.prefix(PREFIX).await? {
            let name = key
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('/').next())
                .map(unquote);
            if let Some(name) = name
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What the catalogue says of `reference`; `None` when it does not have it.
    pub(crate) async fn image(&self, reference: ImageRef, types: &SlotTypes) -> Result<Option<Image>> {
        let path = reference.tag_path();
        let Some(digest) = self.config.get(&path).await? else {
            return Ok(None);
        };
        let mut labels = BTreeMap::new();
        let mut minimum = ResourceSlot::default();
        let mut maximum = ResourceSlot::default();
        for name in types.names() {
            minimum.set(name, SlotValue::ZERO);
            maximum.set(name, SlotValue::Infinity);
        }
        let prefix = format!("{path}/");
        for (key, value) in self.config.prefix(&prefix).await? {
            let Some(rest) = key.strip_prefix(&prefix) else {
                continue;
            };
            if let Some(label) = rest.strip_prefix("labels/") {
                labels.insert(label.to_owned(), value);
            } else if let Some((slot, bound)) = rest
                .strip_prefix("resource/")
                .and_then(|rest| rest.split_once('/'))
            {
                let Some(unit) = types.unit(slot) else { continue };
                let range = match bound {
                    "min" => &mut minimum,
                    "max" => &mut maximum,
                    _ => continue,
                };
                match SlotValue::parse(&value, unit) {
                    Ok(amount) => range.set(slot, amount),
                    Err(error) => {
                        tracing::warn!(image = %reference.canonical(), slot, bound, %error, "ignoring a malformed limit in the image catalogue")
                    }
                }
            }
        }
        let registry = format!("config/docker/registry/{}", quote(&reference.registry));
        let registry = RegistryConfig {
            url: self.config.get(&registry).await?.unwrap_or_default(),
            username: self.config.get(&format!("{registry}/username")).await?,
            password: self.config.get(&format!("{registry}/password")).await?,
            name: reference.registry.clone(),
        };
        let config = ImageConfig {
            canonical: reference.canonical(),
            digest,
            labels,
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
        for image in images {
            let registries = self.known_registries().await?;
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
            for alias in &image.aliases {
                let key = format!("images/_aliases/{}", quote(alias));
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
        }
        Ok(())
    }
}
