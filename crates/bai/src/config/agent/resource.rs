//! `[resource]`: what is left to the host itself.

use serde::Serialize;

use crate::config::section::Problems;
use crate::config::value::{binary_size_or_zero, integer_in};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resource {
    /// Cores.
    pub reserved_cpu: u64,
    /// Bytes.
    pub reserved_mem: u64,
}

impl Resource {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "sections are read alike, whatever they need"
    )]
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("resource", false);
        let reserved_cpu = section.or("reserved-cpu", 1, integer_in(0..=4096));
        let reserved_mem = section.or("reserved-mem", 1 << 30, binary_size_or_zero);
        // No slot is made of disks.
        section.ignored(&["reserved-disk"]);
        section.end();
        Some(Self {
            reserved_cpu: u64::try_from(reserved_cpu).unwrap_or_default(),
            reserved_mem,
        })
    }
}
