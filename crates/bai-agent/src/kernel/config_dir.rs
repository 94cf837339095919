//! The files of `/home/config` (`agent-protocol.md` 6.9): `environ.txt` and `resource.txt`, in the form that programs
//! inside sessions read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use bai_model::{BinarySize, SizeUnit};
use serde_json::{Map, Value};

use super::state::KernelState;

pub(super) const ENVIRON: &str = "environ.txt";
pub(super) const RESOURCE: &str = "resource.txt";
/// The time-out where the file names none.
const DEFAULT_IDLE_TIMEOUT: u64 = 600;

/// Writes both files into `config`. Blocking.
///
/// # Errors
/// When the disk does not take them.
pub(crate) fn write(config: &Path, state: &KernelState) -> io::Result<()> {
    replace(&config.join(ENVIRON), &environ_text(&state.environ))?;
    replace(&config.join(RESOURCE), &ResourceRecord::of(state).to_text())
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

/// `KEY=VALUE` lines. Variables that would break the lines are left out: a value with a newline would read as another
/// variable (the runtime passes them on whole).
fn environ_text(environ: &BTreeMap<String, String>) -> String {
    let is_plain = |(name, value): &(&String, &String)| !name.contains(['=', '\n']) && !value.contains('\n');
    environ
        .iter()
        .filter(is_plain)
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

/// Reads `environ.txt`. A line that is no variable is a part of one whose value had a newline, and lost.
pub(crate) fn read_environ(text: &str) -> BTreeMap<String, String> {
    let variables = text.lines().filter_map(|line| line.split_once('='));
    variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The content of `resource.txt`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourceRecord {
    pub container_id: Option<String>,
    /// The most bytes in a work folder that is memory; 0 for one on the disk.
    pub scratch_size: u64,
    /// `<host>:<kernel>:<permission>`.
    pub mounts: Vec<String>,
    pub slots: BTreeMap<String, String>,
    pub idle_timeout: u64,
    /// Amounts by slot type and device.
    pub shares: BTreeMap<String, BTreeMap<String, String>>,
}

impl ResourceRecord {
    fn of(state: &KernelState) -> Self {
        let share = &state.grant.share;
        let mounts = state.folders.iter().map(|folder| {
            let permission = if folder.writable { "rw" } else { "ro" };
            format!("{}:{}:{permission}", folder.host.display(), folder.target())
        });
        let cpu = share
            .cpu
            .iter()
            .map(|(core, units)| (core.to_string(), units.to_string()))
            .collect();
        let mem = BTreeMap::from([("root".to_owned(), BinarySize::Bytes(share.mem.into()).short())]);
        let mut shares = BTreeMap::from([("cpu".to_owned(), cpu), ("mem".to_owned(), mem)]);
        for (slot, devices) in &share.devices {
            let told = devices
                .iter()
                .map(|(number, amount)| (number.to_string(), amount.to_string()));
            shares.insert(slot.clone(), told.collect());
        }
        Self {
            container_id: state.container_id.clone(),
            scratch_size: state.memory_scratch.unwrap_or(0),
            mounts: mounts.collect(),
            slots: state
                .slots
                .iter()
                .map(|(name, amount)| (name.to_owned(), amount.to_string()))
                .collect(),
            idle_timeout: state.idle_timeout,
            shares,
        }
    }

    pub fn to_text(&self) -> String {
        let slots: Vec<String> = self
            .slots
            .iter()
            .map(|(name, amount)| format!("{}: {}", Value::from(name.as_str()), Value::from(amount.as_str())))
            .collect();
        let mut text = format!(
            "CID={}\nSCRATCH_SIZE={}\nMOUNTS={}\nSLOTS={{{}}}\nIDLE_TIMEOUT={}\n",
            self.container_id.as_deref().unwrap_or("None"),
            BinarySize::Bytes(self.scratch_size.into()).fixed(SizeUnit::Mebi),
            self.mounts.join(","),
            slots.join(", "),
            self.idle_timeout,
        );
        for (slot, devices) in &self.shares {
            let devices: Vec<String> = devices
                .iter()
                .map(|(device, amount)| format!("{device}:{amount}"))
                .collect();
            text.push_str(&format!("{}_SHARES={}\n", slot.to_uppercase(), devices.join(",")));
        }
        text
    }

    /// Reads the file, as this agent or a 19.06 agent wrote it. Unknown keys are skipped, and so is what cannot be read:
    /// the second value says what, a sentence for each line.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut record = Self {
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            ..Self::default()
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        let garbage = lines.filter_map(|line| record.read(line).err()).collect();
        (record, garbage)
    }

    fn read(&mut self, line: &str) -> Result<(), String> {
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| format!("no '=' in the line: {line}"))?;
        let list = || {
            value
                .split(',')
                .filter(|entry| !entry.is_empty())
                .map(str::to_owned)
        };
        match key {
            "CID" => self.container_id = Some(value.to_owned()).filter(|id| id != "None"),
            "SCRATCH_SIZE" => {
                let size = match BinarySize::parse(value) {
                    Ok(BinarySize::Bytes(bytes)) => u64::try_from(bytes).ok(),
                    _ => None,
                };
                self.scratch_size = size.ok_or_else(|| format!("malformed size: {value}"))?;
            }
            "MOUNTS" => self.mounts = list().collect(),
            "SLOTS" => {
                let slots: Map<String, Value> =
                    serde_json::from_str(value).map_err(|error| format!("malformed slots: {error}"))?;
                let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                self.slots = slots
                    .into_iter()
                    .map(|(name, amount)| (name, text(amount)))
                    .collect();
            }
            "IDLE_TIMEOUT" => {
                self.idle_timeout = value
                    .parse()
                    .map_err(|_| format!("malformed time-out: {value}"))?;
            }
            _ => {
                let Some(slot) = key.strip_suffix("_SHARES") else {
                    return Ok(());
                };
                let pair = |entry: String| {
                    let (device, amount) = entry
                        .rsplit_once(':')
                        .ok_or_else(|| format!("malformed share: {entry}"))?;
                    Ok((device.to_owned(), amount.to_owned()))
                };
                let devices: Result<_, String> = list().map(pair).collect();
                self.shares.insert(slot.to_lowercase(), devices?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "CID=9368529c75f88afe\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={\"cpu\": \"1\", \"mem\": \"268435456\"}\nIDLE_TIMEOUT=600\nCPU_SHARES=1:1\nMEM_SHARES=root:256m\n";

    #[test]
    fn a_record_of_the_original_reads_and_writes_back() {
        let (record, garbage) = ResourceRecord::parse(RECORDED);
        assert_eq!(garbage, [""; 0]);
        assert_eq!(record.container_id.as_deref(), Some("9368529c75f88afe"));
        assert_eq!(record.shares["mem"]["root"], "256m");
        assert_eq!(record.to_text(), RECORDED);
    }

    #[test]
    fn every_field_survives() {
        let record = ResourceRecord {
            container_id: None,
            scratch_size: 64 << 20,
            mounts: vec![
                "/mnt/local/00112233:/home/work/data:rw".into(),
                "/a:/home/work/b:ro".into(),
            ],
            slots: BTreeMap::from([("cpu".into(), "3".into())]),
            idle_timeout: 3600,
            shares: BTreeMap::from([(
                "cuda.shares".into(),
                BTreeMap::from([("0".into(), "0.5".into()), ("1".into(), "1".into())]),
            )]),
        };
        assert!(record.to_text().contains("CID=None\nSCRATCH_SIZE=64m\n"));
        assert!(record.to_text().contains("CUDA.SHARES_SHARES=0:0.5,1:1\n"));
        assert_eq!(ResourceRecord::parse(&record.to_text()), (record, Vec::new()));
    }

    #[test]
    fn malformed_lines_are_named_and_the_others_are_read() {
        for text in [
            "CID",
            "SCRATCH_SIZE=x",
            "SLOTS=x",
            "IDLE_TIMEOUT=x",
            "CPU_SHARES=1",
        ] {
            let (record, garbage) =
                ResourceRecord::parse(&format!("CPU_SHARES=0:1\n{text}\nMEM_SHARES=root:1g\n"));
            assert_eq!(garbage.len(), 1, "{text}");
            assert_eq!((record.shares.len(), record.idle_timeout), (2, 600), "{text}");
        }
        assert_eq!(ResourceRecord::parse("OTHER=1\n").1, [""; 0]);
    }

    #[test]
    fn variables_are_read_as_the_original_writes_them() {
        let environ = read_environ("A=1=2\nnothing\nB=\n");
        assert_eq!(
            environ,
            BTreeMap::from([("A".into(), "1=2".into()), ("B".into(), String::new())])
        );
    }

    #[test]
    fn variables_that_would_break_the_lines_are_left_out() {
        let environ = BTreeMap::from([("A".into(), "1=2".into()), ("B".into(), "x\nC=3".into())]);
        assert_eq!(environ_text(&environ), "A=1=2\n");
    }
}
