//! What each kernel does with devices beside cores and memory (`agent-protocol.md` 3.7.3: they add keys of their own).
//!
//! NVIDIA's driver tells programs by the host's numbers for them; to whom one belongs is seen at its control group.
//! Pretended devices tell what follows from a kernel's part of them.
//!
//! Invariants: a kernel is told of devices that it holds only; what the driver does not tell is nothing used.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use bai_model::KernelId;

use crate::resource::accelerator::WHOLE;
use crate::resource::allocation::Share;
use crate::resource::nvidia::{self, Driver};

/// Bytes that a pretended device pretends to have.
const MOCK_MEMORY: f64 = 1_073_741_824.0;

/// A kernel's part of its devices of one kind, and what it uses of that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Bytes.
    pub memory_used: f64,
    pub memory: f64,
    /// Percent of one device's time.
    pub busy: f64,
    pub time: f64,
}

/// What NVIDIA's driver told last.
#[derive(Debug, Default)]
pub(crate) struct Latest(Mutex<Arc<Snapshot>>);

impl Latest {
    pub fn get(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

/// What NVIDIA's devices do, and the programs on them with the text of their control groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub devices: Vec<nvidia::Usage>,
    processes: Vec<(nvidia::Process, String)>,
}

impl Snapshot {
    /// Asks the driver. Blocking.
    pub fn take(driver: &Driver) -> Self {
        let with_group = |process: nvidia::Process| {
            // One that has ended, or is not seen from here, belongs to nobody.
            let group = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
            (process, group)
        };
        Self {
            devices: driver.usage(),
            processes: driver.processes().into_iter().map(with_group).collect(),
        }
    }

    /// By kind, what a kernel uses of the devices that it holds.
    #[expect(clippy::cast_precision_loss, reason = "parts of a device, and statistics")]
    pub fn of(&self, kernel: KernelId, container_id: &str, share: &Share) -> BTreeMap<String, Usage> {
        let mut usages: BTreeMap<String, Usage> = BTreeMap::new();
        for (slot, parts) in &share.devices {
            let kind = slot.split('.').next().unwrap_or(slot);
            for (number, amount) in parts {
                let part = amount.0 as f64 / WHOLE as f64;
                let (memory_used, memory, busy) = match kind {
                    "cuda" => self.cuda(*number, kernel, container_id),
                    "mock" => (MOCK_MEMORY * part / 2.0, MOCK_MEMORY, 50.0 * part),
                    _ => continue,
                };
                let usage = usages.entry(kind.to_owned()).or_default();
                usage.memory_used += memory_used;
                usage.memory += memory * part;
                usage.busy += busy;
                usage.time += 100.0 * part;
            }
        }
        usages
    }

    /// Bytes used, bytes there, percent busy.
    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^53")]
    fn cuda(&self, number: u32, kernel: KernelId, container_id: &str) -> (f64, f64, f64) {
        let device = self.devices.iter().find(|device| device.number == number);
        let sandbox = format!("bai-{kernel}");
        let is_own = |group: &str| {
            let is_container = !container_id.is_empty() && group.contains(container_id);
            is_container || group.contains(&sandbox)
        };
        let own = self.processes.iter();
        let own = own.filter(|(process, group)| process.number == number && is_own(group));
        let (memory, busy) = own.fold((0.0, 0.0), |sum, (process, _)| {
            (sum.0 + process.memory as f64, sum.1 + f64::from(process.busy))
        });
        (memory, device.map_or(0.0, |device| device.memory as f64), busy)
    }
}

#[cfg(test)]
mod tests {
    use crate::resource::accelerator::Thousandths;

    use super::*;

    #[test]
    fn programs_count_for_the_kernel_in_whose_group_they_are() {
        let kernel = KernelId(uuid::Uuid::from_u128(1));
        let container = "0123456789abcdef".repeat(4);
        let process = |number, memory, busy| nvidia::Process {
            number,
            pid: 7,
            memory,
            busy,
        };
        let docker = format!("0::/system.slice/docker-{container}.scope\n");
        let device = |number| nvidia::Usage {
            number,
            memory_used: 900,
            memory: 1000,
            busy: 90,
        };
        let snapshot = Snapshot {
            devices: vec![device(0), device(1)],
            processes: vec![
                (process(0, 100, 10), docker.clone()),
                (process(0, 50, 5), format!("4:memory:/docker/{container}\n0::/\n")),
                (process(0, 400, 40), "0::/docker/another\n".to_owned()),
                (process(0, 1, 1), String::new()),
                (process(1, 200, 20), docker),
            ],
        };
        let share = |parts: &[(u32, u64)]| Share {
            devices: BTreeMap::from([(
                "cuda.shares".to_owned(),
                parts
                    .iter()
                    .map(|(number, part)| (*number, Thousandths(*part)))
                    .collect(),
            )]),
            ..Share::default()
        };
        let part = snapshot.of(kernel, &container, &share(&[(0, 500)]));
        let expected = Usage {
            memory_used: 150.0,
            memory: 500.0,
            busy: 15.0,
            time: 50.0,
        };
        assert_eq!(part, BTreeMap::from([("cuda".to_owned(), expected)]));
        let both = snapshot.of(kernel, &container, &share(&[(0, 1000), (1, 1000)]));
        assert_eq!((both["cuda"].memory_used, both["cuda"].time), (350.0, 200.0));
        // One that has not been told its container yet owns nothing, and who holds no device is told of none.
        assert_eq!(snapshot.of(kernel, "", &share(&[(0, 1000)]))["cuda"].busy, 0.0);
        assert!(snapshot.of(kernel, &container, &Share::default()).is_empty());
        // A device that is gone.
        assert_eq!(
            snapshot.of(kernel, &container, &share(&[(5, 1000)]))["cuda"].memory,
            0.0
        );
    }
}
