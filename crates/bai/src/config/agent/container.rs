//! `[container]`: what sessions of this host are made of.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use toml::Value;

use crate::config::section::Problems;
use crate::config::value::{Read, binary_size_or_zero, integer, integer_in, one_of, path, text};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Container {
    /// User and group of sessions in containers; −1 stands for this agent's own, or 9001 for an agent of root.
    pub kernel_uid: i64,
    /// Where managers reach the sessions' ports; the RPC address when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_host: Option<String>,
    pub port_range: PortRange,
    /// Where the sessions' work folders are.
    pub scratch_type: ScratchType,
    /// A folder for each session.
    pub scratch_root: PathBuf,
    /// Bytes of a work folder in memory; 0 for what 19.06 gives.
    pub scratch_size: u64,
}

/// Where a session's work folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScratchType {
    /// In a folder of this host.
    Hostdir,
    /// In memory, mounted at that folder.
    Memory,
}

/// Ports, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `"30000-31000"` or `[30000, 31000]`.
fn port_range(value: &Value) -> Read<PortRange> {
    let wanted = || format!("must be two ports such as \"30000-31000\" or [30000, 31000]; it is {value}");
    let (first, last) = match value {
        Value::Array(pair) if pair.len() == 2 => (integer(&pair[0])?, integer(&pair[1])?),
        Value::String(text) => {
            let (first, last) = text.split_once('-').ok_or_else(wanted)?;
            let number = |text: &str| text.trim().parse::<i64>().map_err(|_| wanted());
            (number(first)?, number(last)?)
        }
        _ => return Err(wanted()),
    };
    let port = |number: i64| u16::try_from(number).ok().filter(|port| *port > 1024);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange(first..=last)),
        _ => Err(format!(
            "must go from one port above 1024 to a greater one; it is {value}"
        )),
    }
}

/// 19.06's words, which must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    /// Named in a note.
    Other,
}

impl Container {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("container", true);
        let kernel_uid = section.or("kernel-uid", -1, integer_in(-1..=i64::from(u32::MAX) - 1));
        let kernel_host = section.filled("kernel-host", text);
        let port_range = section.or("port-range", PortRange(30000..=31000), port_range);
        let sandbox = section.or(
            "sandbox-type",
            Kind::Usual,
            one_of(&[("docker", Kind::Usual), ("jail", Kind::Other)]),
        );
        let scratch_type = section.or(
            "scratch-type",
            ScratchType::Hostdir,
            one_of(&[("hostdir", ScratchType::Hostdir), ("memory", ScratchType::Memory)]),
        );
        let scratch_root = section.or("scratch-root", PathBuf::from("./scratches"), path);
        let scratch_size = section.or("scratch-size", 0, binary_size_or_zero);
        section.ignored(&["jail-args"]);
        section.end();
        if sandbox == Kind::Other {
            problems.note(
                "container.sandbox-type = \"jail\" is taken as \"docker\": sessions have the engine's seccomp profile and no \
                 capabilities instead of a tracing program",
            );
        }
        let scratch_root = std::path::absolute(&scratch_root).unwrap_or(scratch_root);
        Some(Self {
            kernel_uid,
            kernel_host,
            port_range,
            scratch_type,
            scratch_root,
            scratch_size,
        })
    }

    /// The most bytes in a work folder, where those are in memory.
    pub fn memory_scratch(&self) -> Option<u64> {
        let size = match self.scratch_size {
            0 => bai_agent::DEFAULT_MEMORY_SCRATCH,
            size => size,
        };
        (self.scratch_type == ScratchType::Memory).then_some(size)
    }

    /// User and group of sessions, when they are not for the runtime to choose.
    pub fn user(&self) -> Option<(u32, u32)> {
        let id = u32::try_from(self.kernel_uid).ok()?;
        Some((id, id))
    }
}
