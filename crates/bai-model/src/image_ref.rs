//! Image references `[registry/]name[:tag]` (`data-model.md` 12).

/// A parsed image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    pub registry: String,
    pub name: String,
    pub tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    #[error("ImageRef should not contain the protocol scheme.")]
    Scheme,
    #[error("Empty image repository/name")]
    EmptyName,
    #[error("Invalid image tag")]
    InvalidTag,
    #[error("('invalid tag-version string', '{0}')")]
    InvalidTagVersion(String),
    #[error("('duplicate platform tag with different versions', '{0}')")]
    DuplicatePlatformTag(String),
}

impl ImageRef {
    /// Parses `text` given the names of the known registries.
    pub fn parse(_text: &str, _known_registries: &[String]) -> Result<Self, ImageRefError> {
        Err(ImageRefError::EmptyName)
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
        String::new()
    }
}
