//! `[docker-registry]`: how the registries of images are believed.

use serde::Serialize;

use super::section::Problems;
use super::value::boolean;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DockerRegistry {
    /// Whether their certificates are checked. (In the original, true means that they are not: Q-25.)
    pub ssl_verify: bool,
}

impl DockerRegistry {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "sections are read alike, whatever they need"
    )]
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("docker-registry", false);
        let ssl_verify = section.or("ssl-verify", true, boolean);
        section.end();
        Some(Self { ssl_verify })
    }
}
