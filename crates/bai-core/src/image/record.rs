//! What the catalogue holds of images, as it is written: parsing and reading (`http-api.md` 5.6).
//!
//! Invariants: reading is tolerant of what older versions and hands have written: malformed tags are skipped with a warning
//! a label with a `/` in its name stays one label, an image without limits has none.
//!
//! Not here: what a limit means for a session.

use std::collections::BTreeMap;

use bai_model::ImageRef;
use bai_model::image_ref::unquote;

use super::{Catalogue, check_known};
use crate::{Error, Op, Result};

/// Bounds of one slot as stored: texts such as `1`, `64m`, not normalised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimit {
    /// 0 if absent.
    pub min: Option<String>,
    /// Unlimited if absent.
    pub max: Option<String>,
}

/// One image in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    pub reference: ImageRef,
    /// Of the image's configuration.
    pub digest: String,
    /// 0 if unknown.
    pub size_bytes: u64,
    pub labels: BTreeMap<String, String>,
    /// By slot.
    pub resource_limits: BTreeMap<String, ResourceLimit>,
    /// From the key `accelerators`, which the original reads, else `accels`, which it writes.
    pub accelerators: Vec<String>,
    /// Aliases whose target is exactly this image's canonical reference.
    pub aliases: Vec<String>,
}

impl ImageRecord {
    /// An image from its digest and the entries below its key, with keys relative to it.
    fn new<'e>(
        reference: ImageRef,
        digest: String,
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) -> Self {
        let mut record = Self {
            reference,
            digest,
            size_bytes: 0,
            labels: BTreeMap::new(),
            resource_limits: BTreeMap::new(),
            accelerators: Vec::new(),
            aliases: Vec::new(),
        };
        let (mut written, mut read) = (None, None);
        for (key, value) in entries {
            if let Some(label) = key.strip_prefix("labels/") {
                record.labels.insert(label.to_owned(), value.to_owned());
            } else if let Some((slot, bound)) = key
                .strip_prefix("resource/")
                .and_then(|rest| rest.split_once('/'))
            {
                let limit = record.resource_limits.entry(slot.to_owned()).or_default();
                match bound {
                    "min" => limit.min = Some(value.to_owned()),
                    "max" => limit.max = Some(value.to_owned()),
                    _ => {}
                }
            } else {
                match key {
                    "size_bytes" => record.size_bytes = value.parse().unwrap_or_default(),
                    "accels" => written = Some(value),
                    "accelerators" => read = Some(value),
                    _ => {}
                }
            }
        }
        let accelerators = read.or(written).unwrap_or_default().split(',').map(str::trim);
        record.accelerators = accelerators
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        record
    }
}

impl Catalogue {
    /// All images of all registries, in the order of their keys. For everybody with a keypair.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] without one.
    pub async fn images_list(&self, op: &Op) -> Result<Vec<ImageRecord>> {
        check_known(op)?;
        let mut records = records(&self.config.prefix("images/").await?);
        let aliases = self.aliases().await?;
        for record in &mut records {
            record.add_aliases(&aliases);
        }
        Ok(records)
    }

    /// The image that a reference or alias names, if the catalogue has it. For everybody with a keypair.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for a malformed reference, [`Error::Unauthorized`] without a keypair.
    pub async fn image_get(&self, op: &Op, reference: &str) -> Result<Option<ImageRecord>> {
        check_known(op)?;
        let reference = self.resolve(reference).await?;
        let Some(mut record) = self.record(&reference).await? else {
            return Ok(None);
        };
        record.add_aliases(&self.aliases().await?);
        Ok(Some(record))
    }

    /// An image without its aliases.
    pub(crate) async fn record(&self, reference: &ImageRef) -> Result<Option<ImageRecord>> {
        let path = reference.tag_path();
        let Some(digest) = self.config.get(&path).await? else {
            return Ok(None);
        };
        let prefix = format!("{path}/");
        let entries = self.config.prefix(&prefix).await?;
        let entries = entries
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value.as_str())));
        Ok(Some(ImageRecord::new(reference.clone(), digest, entries)))
    }

    /// The image that is meant, or an error that says how to find others.
    pub(super) async fn existing(&self, reference: &str) -> Result<ImageRecord> {
        let resolved = self.resolve(reference).await?;
        self.record(&resolved).await?.ok_or_else(|| {
            Error::invalid(format!(
                "Unknown image reference: {reference} ({resolved} is not in the catalogue; rescan its registry or list \
                 the images)"
            ))
        })
    }
}

impl ImageRecord {
    fn add_aliases(&mut self, aliases: &BTreeMap<String, String>) {
        let canonical = self.reference.canonical();
        let own = aliases.iter().filter(|(_, target)| **target == canonical);
        self.aliases = own.map(|(name, _)| name.clone()).collect();
    }
}

/// The images among the entries below `images/`, which are in the order of their keys.
fn records(entries: &[(String, String)]) -> Vec<ImageRecord> {
    type Entries<'e> = Vec<(&'e str, &'e str)>;
    let mut images: BTreeMap<(&str, &str, &str), (Option<&str>, Entries<'_>)> = BTreeMap::new();
    for (key, value) in entries {
        let parts: Vec<&str> = key.splitn(5, '/').collect();
        match parts.as_slice() {
            ["images", "_aliases", ..] => {}
            ["images", registry, name, tag] => {
                images.entry((registry, name, tag)).or_default().0 = Some(value);
            }
            ["images", registry, name, tag, below] => {
                images
                    .entry((registry, name, tag))
                    .or_default()
                    .1
                    .push((below, value));
            }
            _ => {}
        }
    }
    let mut records = Vec::with_capacity(images.len());
    for ((registry, name, tag), (digest, entries)) in images {
        // Limits alone, which the original writes for any text, are no image.
        let Some(digest) = digest else { continue };
        match stored_reference(registry, name, tag) {
            Ok(reference) => records.push(ImageRecord::new(reference, digest.to_owned(), entries)),
            Err(error) => {
                tracing::warn!(registry, name, tag, %error, "skipping a malformed image in the catalogue");
            }
        }
    }
    records
}

/// A reference from the components of a key.
fn stored_reference(registry: &str, name: &str, tag: &str) -> std::result::Result<ImageRef, String> {
    reference(&unquote(registry), &unquote(name), tag)
}

/// A reference from its parts, if they are what its text is parsed to.
pub(super) fn reference(registry: &str, name: &str, tag: &str) -> std::result::Result<ImageRef, String> {
    let text = format!("{registry}/{name}:{tag}");
    let reference = ImageRef::parse(&text, &[registry.to_owned()]).map_err(|error| error.to_string())?;
    if reference.registry == registry && reference.name == name && reference.tag == tag {
        return Ok(reference);
    }
    Err(format!("{text} is read as {reference}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[(&str, &str)]) -> Vec<ImageRecord> {
        let entries: Vec<_> = lines
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        records(&entries)
    }

    #[test]
    fn images_are_read_as_the_original_wrote_them() {
        let records = parse(&[
            ("images/127.0.0.1%3A15000/lablup%2Fpython", "1"),
            ("images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian", "sha256:70"),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/accels",
                "cuda,tpu",
            ),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/labels/ai.backend.kernelspec",
                "1",
            ),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/labels/org/part",
                "x",
            ),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/resource/mem/max",
                "1g",
            ),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/resource/mem/min",
                "256m",
            ),
            (
                "images/127.0.0.1%3A15000/lablup%2Fpython/3.6-debian/size_bytes",
                "137327003",
            ),
            (
                "images/_aliases/python",
                "127.0.0.1:15000/lablup/python:3.6-debian",
            ),
        ]);
        let [record] = records.as_slice() else {
            panic!("{records:?}")
        };
        assert_eq!(
            record.reference.canonical(),
            "127.0.0.1:15000/lablup/python:3.6-debian"
        );
        assert_eq!(
            (record.digest.as_str(), record.size_bytes),
            ("sha256:70", 137_327_003)
        );
        assert_eq!(record.labels.len(), 2);
        assert_eq!(record.labels.get("org/part").map(String::as_str), Some("x"));
        let mem = ResourceLimit {
            min: Some("256m".to_owned()),
            max: Some("1g".to_owned()),
        };
        assert_eq!(record.resource_limits.get("mem"), Some(&mem));
        assert_eq!(record.accelerators, ["cuda", "tpu"]);
    }

    #[test]
    fn what_is_malformed_is_skipped_and_the_rest_is_read() {
        let records = parse(&[
            ("images/index.docker.io/lablup%2Fgood/1", "sha256:1"),
            ("images/index.docker.io/lablup%2Fgood/1/accelerators", ""),
            ("images/index.docker.io/lablup%2Fgood/1/accels", "cuda"),
            ("images/index.docker.io/lablup%2Fgood/1/size_bytes", "many"),
            ("images/index.docker.io/lablup%2Fgood/3.6-18.04", "sha256:2"),
            ("images/index.docker.io/lablup%2Fgood/2/resource/cpu/max", "4"),
            ("images/index.docker.io/unqualified/1", "sha256:3"),
            ("images/stray", "x"),
        ]);
        let [record] = records.as_slice() else {
            panic!("{records:?}")
        };
        assert_eq!(record.reference.canonical(), "index.docker.io/lablup/good:1");
        assert_eq!((record.size_bytes, record.accelerators.len()), (0, 0));
    }
}
