//! Which cores and how much memory a kernel gets (`agent-protocol.md` 7.6). Pure.
//!
//! A core provides one or more units of the slot `cpu`; memory is one device. A request for `cpu` is truncated to whole
//! units, which are taken from the emptiest core first.
//!
//! Invariants: what is handed out never exceeds the capacity; a refused request takes nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bai_model::ResourceSlot;
use serde::{Deserialize, Serialize};

/// A kernel's part of the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Units by core. A core with 0 units is shared with whoever else has it.
    pub cpu: BTreeMap<usize, u64>,
    /// Bytes.
    pub mem: u64,
}

/// Less is left than was asked for. The amounts are texts, as the error's arguments are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{requested} of {slot} was asked for, {available} is left")]
pub struct Insufficient {
    /// The type of device, for example `cpu`.
    pub device: String,
    pub slot: String,
    pub requested: String,
    pub available: String,
}

/// The devices, with what is handed out.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    cores: BTreeMap<usize, Device>,
    mem: Device,
}

#[derive(Clone, Copy, Debug, Default)]
struct Device {
    capacity: u64,
    used: u64,
}

impl Device {
    fn free(self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }
}

impl Pool {
    /// `units` of `cpu` spread over `cores`, as evenly as can be, and `mem` bytes.
    pub fn new(cores: &[usize], units: u64, mem: u64) -> Self {
        let count = cores.len() as u64;
        let device = |position: u64| {
            let capacity = units / count + u64::from(position < units % count);
            Device { capacity, used: 0 }
        };
        let cores = (0..).zip(cores).map(|(position, core)| (*core, device(position)));
        Self {
            cores: cores.filter(|(_, device)| device.capacity > 0).collect(),
            mem: Device {
                capacity: mem,
                used: 0,
            },
        }
    }

    /// Units of `cpu` in all.
    pub fn cpu_capacity(&self) -> u64 {
        self.cores.values().map(|core| core.capacity).sum()
    }

    /// Bytes in all.
    pub fn mem_capacity(&self) -> u64 {
        self.mem.capacity
    }

    /// Takes what `slots` asks for. Slots that this host does not have are ignored if nothing of them is asked for.
    ///
    /// # Errors
    /// [`Insufficient`] for the first slot of which there is not enough.
    pub fn allocate(&mut self, slots: &ResourceSlot) -> Result<Share, Insufficient> {
        let mut asked = (0, 0);
        for (slot, amount) in slots.iter() {
            let (target, free) = match slot {
                "cpu" => (&mut asked.0, self.cores.values().map(|core| core.free()).sum()),
                "mem" => (&mut asked.1, self.mem.free()),
                _ if amount.is_zero() => continue,
                _ => return Err(insufficient(slot, amount, 0)),
            };
            match amount.whole().and_then(|amount| u64::try_from(amount).ok()) {
                Some(amount) if amount <= free => *target = amount,
                _ => return Err(insufficient(slot, amount, free)),
            }
        }
        let share = Share {
            cpu: self.choose_cores(asked.0),
            mem: asked.1,
        };
        self.restore(&share);
        Ok(share)
    }

    /// Cores with `amount` free units together, the emptiest first.
    fn choose_cores(&self, amount: u64) -> BTreeMap<usize, u64> {
        let mut by_room: Vec<(usize, u64)> = self
            .cores
            .iter()
            .map(|(core, device)| (*core, device.free()))
            .collect();
        by_room.sort_by_key(|(_, free)| Reverse(*free));
        let mut remaining = amount;
        let mut chosen = BTreeMap::new();
        for (core, free) in by_room.into_iter().filter(|(_, free)| *free > 0) {
            let units = remaining.min(free);
            chosen.insert(core, units);
            remaining -= units;
            if remaining == 0 {
                break;
            }
        }
        chosen
    }

    /// Records a share that is held already.
    pub fn restore(&mut self, share: &Share) {
        for (core, units) in &share.cpu {
            self.cores.entry(*core).or_default().used += units;
        }
        self.mem.used = self.mem.used.saturating_add(share.mem);
    }

    /// Takes a share back.
    pub fn release(&mut self, share: &Share) {
        for (core, units) in &share.cpu {
            if let Some(core) = self.cores.get_mut(core) {
                core.used = core.used.saturating_sub(*units);
            }
        }
        self.mem.used = self.mem.used.saturating_sub(share.mem);
    }
}

fn insufficient(slot: &str, requested: bai_model::SlotValue, available: u64) -> Insufficient {
    Insufficient {
        device: slot.split('.').next().unwrap_or(slot).to_owned(),
        slot: slot.to_owned(),
        requested: requested.to_string(),
        available: available.to_string(),
    }
}

#[cfg(test)]
mod tests;
