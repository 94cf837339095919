//! What a registry says of an image: manifests of Docker (version 2, schema 2) and OCI, lists of them for several
//! platforms, and the configuration blob with its labels.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Cause;

/// What the registry may answer to a question for a manifest.
pub(crate) const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.index.v1+json";

/// Bytes of a manifest or a list of them, as registries limit it.
pub(crate) const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Bytes of a configuration blob.
pub(crate) const MAX_CONFIG: usize = 4 * 1024 * 1024;
/// Bytes of all labels of an image: they must fit the configuration store.
const MAX_LABELS: usize = 512 * 1024;

/// One image of one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of the configuration blob: `sha256:<64 hexadecimal digits>`.
    pub digest: String,
    /// The configuration and all layers, compressed.
    pub size_bytes: u64,
    pub labels: BTreeMap<String, String>,
}

/// A manifest as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    Image {
        config: String,
        size_bytes: u64,
    },
    /// Digests and platforms (`linux`, `amd64`).
    List(Vec<(String, Option<(String, String)>)>),
}

#[derive(Deserialize)]
struct Document {
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Manifest {
    /// Tells the kinds apart by what they hold; a document that is both is neither.
    pub fn parse(body: &[u8]) -> Result<Self, Cause> {
        let document: Document = serde_json::from_slice(body)
            .map_err(|error| Cause::malformed(format!("the manifest is malformed: {error}")))?;
        match (document.config, document.layers, document.manifests) {
            (Some(config), layers, None) => {
                let layers = layers.unwrap_or_default();
                let size_bytes = layers
                    .iter()
                    .try_fold(config.size, |sum, layer| sum.checked_add(layer.size))
                    .ok_or_else(|| Cause::malformed("the sizes in the manifest are impossible"))?;
                check_digest(&config.digest)?;
                Ok(Self::Image {
                    config: config.digest,
                    size_bytes,
                })
            }
            (None, None, Some(manifests)) => {
                let manifests = manifests.into_iter().map(|entry| {
                    check_digest(&entry.digest)?;
                    let platform = entry
                        .platform
                        .map(|platform| (platform.os, platform.architecture));
                    Ok((entry.digest, platform))
                });
                Ok(Self::List(manifests.collect::<Result<_, Cause>>()?))
            }
            (None, _, None) if document.schema_version == Some(1) => Err(Cause::Unsupported(
                "has a manifest of schema 1 only; push it again with a current tool".to_owned(),
            )),
            _ => Err(Cause::malformed("the manifest is neither an image's nor a list")),
        }
    }
}

/// The Linux image of the most preferred architecture.
pub(crate) fn choose<'l>(
    list: &'l [(String, Option<(String, String)>)],
    architectures: &[String],
) -> Result<&'l str, Cause> {
    let of = |wanted: &String| {
        list.iter().find_map(|(digest, platform)| {
            let (os, architecture) = platform.as_ref()?;
            (os == "linux" && architecture == wanted).then_some(digest.as_str())
        })
    };
    architectures.iter().find_map(of).ok_or_else(|| {
        let wanted = architectures.join(" or ");
        Cause::Unsupported(format!("has no variant for linux on {wanted}"))
    })
}

#[derive(Deserialize)]
struct ConfigFile {
    container_config: Option<Labelled>,
    config: Option<Labelled>,
}

#[derive(Deserialize)]
struct Labelled {
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

/// The labels in a configuration blob: of the container that it was made from, as the original reads them, or else its
/// own.
pub(crate) fn labels(blob: &[u8]) -> Result<BTreeMap<String, String>, Cause> {
    let file: ConfigFile = serde_json::from_slice(blob)
        .map_err(|error| Cause::malformed(format!("the image's configuration is malformed: {error}")))?;
    let of = |part: Option<Labelled>| {
        part.and_then(|part| part.labels)
            .filter(|labels| !labels.is_empty())
    };
    let labels = of(file.container_config)
        .or_else(|| of(file.config))
        .unwrap_or_default();
    if labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > MAX_LABELS
    {
        return Err(Cause::TooLarge {
            what: "the set of labels",
            limit: MAX_LABELS,
        });
    }
    Ok(labels)
}

/// That a digest can be asked for and checked.
pub(crate) fn check_digest(digest: &str) -> Result<(), Cause> {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.chars().all(is_hex) => Ok(()),
        _ => Err(Cause::malformed(format!("{digest:?} is no sha256 digest"))),
    }
}

/// That `body` is what `digest` names.
pub(crate) fn verify(body: &[u8], digest: &str) -> Result<(), Cause> {
    let actual = format!("sha256:{}", hex::encode(Sha256::digest(body)));
    if actual == digest {
        return Ok(());
    }
    Err(Cause::malformed(format!(
        "the content for {digest} is something else ({actual})"
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn parse(document: &serde_json::Value) -> Result<Manifest, Cause> {
        Manifest::parse(document.to_string().as_bytes())
    }

    #[test]
    fn an_image_is_as_large_as_its_parts() {
        let manifest = parse(&json!({
            "schemaVersion": 2, "config": { "digest": digest('a'), "size": 5 },
            "layers": [{ "digest": digest('b'), "size": 10 }, { "digest": digest('c'), "size": 20 }],
        }));
        assert_eq!(
            manifest,
            Ok(Manifest::Image {
                config: digest('a'),
                size_bytes: 35
            })
        );
        let impossible = parse(&json!({
            "config": { "digest": digest('a'), "size": u64::MAX }, "layers": [{ "digest": digest('b'), "size": 1 }],
        }));
        assert!(matches!(impossible, Err(Cause::Malformed(_))));
    }

    #[test]
    fn a_list_gives_the_first_wanted_linux_variant() {
        let list = parse(&json!({ "manifests": [
            { "digest": digest('0'), "size": 1, "platform": { "os": "windows", "architecture": "amd64" } },
            { "digest": digest('1'), "size": 1, "platform": { "os": "linux", "architecture": "arm64" } },
            { "digest": digest('2'), "size": 1, "platform": { "os": "linux", "architecture": "amd64" } },
            { "digest": digest('3'), "size": 1 },
        ] }));
        let Ok(Manifest::List(list)) = list else {
            panic!("{list:?}")
        };
        let wanted = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&list, &names).map(str::to_owned)
        };
        assert_eq!(wanted(&["amd64"]), Ok(digest('2')));
        assert_eq!(wanted(&["riscv64", "arm64", "amd64"]), Ok(digest('1')));
        assert!(matches!(wanted(&["riscv64"]), Err(Cause::Unsupported(_))));
    }

    #[test]
    fn what_is_no_manifest_is_an_error() {
        let both = json!({ "config": { "digest": digest('a'), "size": 1 }, "manifests": [] });
        assert!(matches!(parse(&both), Err(Cause::Malformed(_))));
        let first = json!({ "schemaVersion": 1, "fsLayers": [] });
        assert!(matches!(parse(&first), Err(Cause::Unsupported(_))));
        for bad in ["../../etc", "sha256:abc", "md5:0", &digest('G')] {
            let manifest = json!({ "config": { "digest": bad, "size": 1 }, "layers": [] });
            assert!(matches!(parse(&manifest), Err(Cause::Malformed(_))), "{bad}");
        }
        for bad in ["", "null", "[]", "{}", "{\"config\":3}"] {
            assert!(Manifest::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_come_from_either_place() {
        let labels = |file: serde_json::Value| labels(file.to_string().as_bytes());
        let old =
            json!({ "container_config": { "Labels": { "a": "1" } }, "config": { "Labels": { "b": "2" } } });
        assert_eq!(
            labels(old).unwrap(),
            BTreeMap::from([("a".to_owned(), "1".to_owned())])
        );
        let new = json!({ "container_config": { "Labels": null }, "config": { "Labels": { "b": "2" } } });
        assert_eq!(
            labels(new).unwrap(),
            BTreeMap::from([("b".to_owned(), "2".to_owned())])
        );
        assert!(labels(json!({ "config": {} })).unwrap().is_empty());
        assert!(labels(json!({})).unwrap().is_empty());
        assert!(labels(json!({ "config": { "Labels": { "a": 1 } } })).is_err());
        assert!(labels(json!([])).is_err());
        let large = json!({ "config": { "Labels": { "a": "x".repeat(MAX_LABELS) } } });
        assert!(matches!(labels(large), Err(Cause::TooLarge { .. })));
    }
}
