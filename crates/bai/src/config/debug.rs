//! `[debug]`: how much is said about what goes on inside.

use serde::Serialize;

use super::section::Problems;
use super::value::boolean;

#[derive(Clone, Debug, Serialize)]
pub struct Debug {
    /// Log everything that operators may want. (The original also puts tracebacks into answers; nobody should see ours.)
    pub enabled: bool,
}

impl Debug {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "sections are read alike, whatever they need"
    )]
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        Some(Self::read_with(problems, &[]))
    }

    /// With keys that are legal and have no effect.
    pub(super) fn read_with(problems: &mut Problems<'_>, ignored: &[&'static str]) -> Self {
        let mut section = problems.section("debug", false);
        let enabled = section.or("enabled", false, boolean);
        section.ignored(ignored);
        section.end();
        Self { enabled }
    }
}
