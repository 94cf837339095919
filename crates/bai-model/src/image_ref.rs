//! Image references `[registry/]name[:tag]` (`data-model.md` 12).
//!
//! Invariants: a reference made by [`ImageRef::parse`] has a non-empty name and a tag that splits into a version and
//! platform tags of distinct names; its canonical text is what databases and other managers hold.
//!
//! Not here: aliases and what a registry knows of an image, both of which need the configuration store.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

mod version;

use version::Version;

/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "index.docker.io";

/// The part before `/` that names without one get at Docker's registries.
pub const DEFAULT_REPOSITORY: &str = "lablup";

/// The tag of references that have none.
pub const DEFAULT_TAG: &str = "latest";

/// A parsed image reference. Equal if registry, name and tag are the same texts (`data-model.md` 12.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Host and port, as configured.
    pub registry: String,
    /// With the repository, without registry and tag.
    pub name: String,
    /// `<version>[-<platform tag>]...`
    pub tag: String,
}

/// Why a text is not an image reference, in the original's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// It is a URL.
    #[error("ImageRef should not contain the protocol scheme.")]
    Scheme,
    /// Nothing before the tag.
    #[error("Empty image repository/name")]
    EmptyName,
    /// The tag is empty, begins or ends with punctuation, or has other characters than letters, digits, `.`, `_`, `-`.
    #[error("Invalid image tag")]
    InvalidTag,
    /// This platform tag is not letters followed by a version.
    #[error("('invalid tag-version string', '{0}')")]
    InvalidTagVersion(String),
    /// A platform tag before this one has the same name.
    #[error("('duplicate platform tag with different versions', '{0}')")]
    DuplicatePlatformTag(String),
}

/// Two references with different names have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only the image-refs with same names can be compared.")]
pub struct DifferentNames;

impl ImageRef {
    /// Parses `text` given the names of the known registries (`data-model.md` 12.1). What is before the first `/` is a
    /// registry only if it is known, the default one or an IP address; else it belongs to the name.
    ///
    /// # Errors
    /// [`ImageRefError`], with the text that the original answers.
    pub fn parse(text: &str, known_registries: &[String]) -> Result<Self, ImageRefError> {
        if text.contains("://") || text.starts_with("//") {
            return Err(ImageRefError::Scheme);
        }
        let is_registry = |part: &str| {
            part == DEFAULT_REGISTRY || known_registries.iter().any(|r| r == part) || is_ip_address(part)
        };
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, text),
        };
        let (name, tag) = rest.rsplit_once(':').unwrap_or((rest, DEFAULT_TAG));
        if name.is_empty() {
            return Err(ImageRefError::EmptyName);
        }
        check_tag(tag)?;
        let of_docker = registry == "docker.io" || registry.ends_with(".docker.io");
        let name = if of_docker && !name.contains('/') {
            format!("{DEFAULT_REPOSITORY}/{name}")
        } else {
            name.to_owned()
        };
        Ok(Self {
            registry: registry.to_owned(),
            name,
            tag: tag.to_owned(),
        })
    }

    /// `registry/name:tag`.
    pub fn canonical(&self) -> String {
        format!("{}/{}:{}", self.registry, self.name, self.tag)
    }

    /// `name:tag`.
    pub fn short(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// `images/<quoted registry>/<quoted name>/<tag>`, the metadata key in the configuration store.
    pub fn tag_path(&self) -> String {
        format!(
            "images/{}/{}/{}",
            quote(&self.registry),
            quote(&self.name),
            self.tag
        )
    }

    /// The tag up to the first `-`.
    pub fn version(&self) -> &str {
        self.tag.split_once('-').map_or(&self.tag, |(version, _)| version)
    }

    /// Names and versions of the platform tags, in order; `alpine3.8` is `("alpine", "3.8")`, `gpu` is `("gpu", "")`.
    pub fn platform_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag.split('-').skip(1).map(split_platform_tag)
    }

    /// Whether `self` comes before `other` (`data-model.md` 12.2): by version, where words come before numbers and `5.9`
    /// before `5.10`; then by the versions of the platform tags that both have, in the order of `self`; then the one
    /// with more platform tags first. That order of `self` makes this no total order.
    ///
    /// # Errors
    /// [`DifferentNames`].
    pub fn precedes(&self, other: &Self) -> Result<bool, DifferentNames> {
        if self.name != other.name {
            return Err(DifferentNames);
        }
        let before = |left: &str, right: &str| Version::parse(left) < Version::parse(right);
        if self.version() != other.version() {
            return Ok(before(self.version(), other.version()));
        }
        for (name, left) in self.platform_tags() {
            let right = other
                .platform_tags()
                .find(|(own, _)| *own == name)
                .map_or("", |(_, version)| version);
            if !left.is_empty() && !right.is_empty() && left != right {
                return Ok(before(left, right));
            }
        }
        Ok(self.platform_tags().count() > other.platform_tags().count())
    }
}

/// As [`ImageRef::canonical`].
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.name, self.tag)
    }
}

/// All but ASCII letters, digits and `_ . -`.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-');

/// `text` as one component of a key in the configuration store: percent-encoded but for ASCII letters, digits and
/// `_ . -` (`data-model.md` 12.1).
pub fn quote(text: &str) -> String {
    utf8_percent_encode(text, QUOTED).to_string()
}

/// The reverse of [`quote`]. Escapes that are no UTF-8 become U+FFFD; a `%` without two hexadecimal digits stays.
pub fn unquote(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Whether this is an IP address, with a port or without; version 6 only in brackets.
fn is_ip_address(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    host.parse::<SocketAddr>().is_ok()
        || host.parse::<Ipv4Addr>().is_ok()
        || bracketed.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

fn check_tag(tag: &str) -> Result<(), ImageRefError> {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if !tag.chars().all(is_inner) || !is_outer(tag.chars().next()) || !is_outer(tag.chars().next_back()) {
        return Err(ImageRefError::InvalidTag);
    }
    let mut names = Vec::new();
    for piece in tag.split('-').skip(1) {
        let (name, version) = split_platform_tag(piece);
        if name.is_empty() || !is_platform_version(version) {
            return Err(ImageRefError::InvalidTagVersion(piece.to_owned()));
        }
        if names.contains(&name) {
            return Err(ImageRefError::DuplicatePlatformTag(piece.to_owned()));
        }
        names.push(name);
    }
    Ok(())
}

/// The leading letters, and the rest.
fn split_platform_tag(piece: &str) -> (&str, &str) {
    piece.split_at(
        piece
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(piece.len()),
    )
}

/// Nothing, or numbers separated by dots followed by lower-case letters and digits.
fn is_platform_version(version: &str) -> bool {
    let mut rest = version.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() == version.len() {
        return version.is_empty();
    }
    while let Some(part) = rest.strip_prefix('.') {
        rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == part.len() {
            return false;
        }
    }
    rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
