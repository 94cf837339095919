//! What this host has, and who has how much of it (`agent-protocol.md` 7.4, 7.6).
//!
//! Invariants: never more is given than there is; what a kernel got is given back exactly once, by
//! [`Allocator::free`] with the same [`Allocation`].

use std::collections::BTreeMap;
use std::fs;

use bai_model::{ResourceSlot, SlotValue};
use bai_proto::agent::AgentError;
use serde::{Deserialize, Serialize};

/// What the host offers to kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Numbers of the usable CPUs.
    pub cpus: Vec<usize>,
    /// Bytes.
    pub memory: u64,
}

impl Capacity {
    /// The CPUs that this process may use, and the memory of the host or of its cgroup, whichever is less.
    pub fn discover() -> Self {
        let affinity = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok();
        let cpus = affinity.map(|set| {
            (0..nix::sched::CpuSet::count())
                .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
                .collect()
        });
        let cpus: Vec<usize> = cpus.unwrap_or_else(|| vec![0]);
        let limits = [
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory.max",
        ];
        let limit = limits
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
            .min();
        Self {
            cpus,
            memory: total_memory().unwrap_or(1 << 30).min(limit.unwrap_or(u64::MAX)),
        }
    }

    /// As slots.
    pub fn slots(&self) -> ResourceSlot {
        let mut slots = ResourceSlot::default();
        slots.set("cpu", SlotValue::Finite(self.cpus.len().into()));
        slots.set("mem", SlotValue::Finite(self.memory.into()));
        slots
    }
}

fn total_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// What one kernel got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// CPU number and how much of it was asked for.
    pub cpus: BTreeMap<usize, u64>,
    pub memory: u64,
}

/// Who has what.
#[derive(Clone, Debug)]
pub struct Allocator {
    capacity: Capacity,
    cpus: BTreeMap<usize, u64>,
    memory: u64,
}

impl Allocator {
    pub fn new(capacity: Capacity) -> Self {
        let cpus = capacity.cpus.iter().map(|cpu| (*cpu, 0)).collect();
        Self {
            capacity,
            cpus,
            memory: 0,
        }
    }

    /// Gives a kernel what it asks for: whole CPUs, the least used first, and memory.
    ///
    /// # Errors
    /// `InsufficientResource` as `agent-protocol.md` 2.11 says; nothing is given then.
    pub fn allocate(&mut self, requested: &ResourceSlot) -> Result<Allocation, AgentError> {
        for (slot, amount) in requested.iter() {
            if !matches!(slot, "cpu" | "mem") && !amount.is_zero() {
                return Err(insufficient(slot, &amount.to_string(), "0"));
            }
        }
        let whole =
            |slot: &str| u64::try_from(requested.amount(slot).whole().unwrap_or(i128::MAX)).unwrap_or(0);
        let (cores, memory) = (whole("cpu"), whole("mem"));
        let free_memory = self.capacity.memory.saturating_sub(self.memory);
        if memory > free_memory {
            return Err(insufficient("mem", &memory.to_string(), &free_memory.to_string()));
        }
        let free_cores = self.cpus.values().filter(|used| **used == 0).count() as u64;
        if cores > free_cores {
            return Err(insufficient("cpu", &cores.to_string(), &free_cores.to_string()));
        }
        let free = self
            .cpus
            .iter()
            .filter(|(_, used)| **used == 0)
            .map(|(cpu, _)| *cpu);
        let cpus: BTreeMap<usize, u64> = free
            .take(usize::try_from(cores).unwrap_or(0))
            .map(|cpu| (cpu, 1))
            .collect();
        let allocation = Allocation { cpus, memory };
        self.take(&allocation);
        Ok(allocation)
    }

    /// Notes what an adopted kernel has.
    pub fn take(&mut self, allocation: &Allocation) {
        for (cpu, amount) in &allocation.cpus {
            *self.cpus.entry(*cpu).or_default() += amount;
        }
        self.memory += allocation.memory;
    }

    /// Takes back what a kernel had.
    pub fn free(&mut self, allocation: &Allocation) {
        for (cpu, amount) in &allocation.cpus {
            if let Some(used) = self.cpus.get_mut(cpu) {
                *used = used.saturating_sub(*amount);
            }
        }
        self.memory = self.memory.saturating_sub(allocation.memory);
    }
}

fn insufficient(slot: &str, requested: &str, available: &str) -> AgentError {
    let args = ["not enough capacity", "", slot, requested, available];
    AgentError::Exception {
        kind: "InsufficientResource".to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn slots(cpu: u64, mem: u64) -> ResourceSlot {
        ResourceSlot::from_stored(&json!({ "cpu": cpu.to_string(), "mem": mem.to_string() })).0
    }

    fn allocator() -> Allocator {
        Allocator::new(Capacity {
            cpus: vec![0, 1, 2, 5],
            memory: 1000,
        })
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let mut allocator = allocator();
        assert!(allocator.allocate(&slots(5, 1)).is_err());
        assert!(allocator.allocate(&slots(1, 1001)).is_err());
        let unknown = ResourceSlot::from_stored(&json!({ "cpu": "1", "cuda.device": "1" })).0;
        assert!(allocator.allocate(&unknown).is_err());
        let zero = ResourceSlot::from_stored(&json!({ "cpu": "1", "cuda.device": "0" })).0;
        assert!(allocator.allocate(&zero).is_ok());
    }

    proptest! {
        #[test]
        fn giving_and_taking_back_ends_where_it_began(requests in proptest::collection::vec((0u64..4, 0u64..600), 0..20)) {
            let mut allocator = allocator();
            let mut held = Vec::new();
            for (cpu, mem) in requests {
                match allocator.allocate(&slots(cpu, mem)) {
                    Ok(allocation) => held.push(allocation),
                    Err(_) => if let Some(allocation) = held.pop() { allocator.free(&allocation) },
                }
                prop_assert!(allocator.memory <= 1000);
                prop_assert!(allocator.cpus.values().all(|used| *used <= 1));
            }
            for allocation in held {
                allocator.free(&allocation);
            }
            prop_assert_eq!(allocator.memory, 0);
            prop_assert!(allocator.cpus.values().all(|used| *used == 0));
        }
    }
}
