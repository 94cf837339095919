//! Which cores, how much memory and which devices a kernel gets (`agent-protocol.md` 7.6). Pure.
//!
//! A core provides one or more units of the slot `cpu`; memory is one device. A request for `cpu` or for whole devices is
//! truncated to whole units. All are taken from the emptiest core or device first.
//!
//! Invariants: what is handed out never exceeds the capacity; a refused request takes nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bai_model::ResourceSlot;
use serde::{Deserialize, Serialize};

use super::accelerator::{Accelerator, Given, Thousandths, WHOLE};

/// A kernel's part of the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Units by core. A core with 0 units is shared with whoever else has it.
    pub cpu: BTreeMap<usize, u64>,
    /// Bytes.
    pub mem: u64,
    /// Parts of devices by slot type and number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, BTreeMap<u32, Thousandths>>,
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
    accelerators: BTreeMap<String, (Accelerator, BTreeMap<u32, Device>)>,
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
            accelerators: BTreeMap::new(),
        }
    }

    /// The same with these devices too.
    #[must_use]
    pub fn with(mut self, accelerators: impl IntoIterator<Item = Accelerator>) -> Self {
        for accelerator in accelerators {
            let device = |number: &u32| {
                let (capacity, used) = (WHOLE, 0);
                (*number, Device { capacity, used })
            };
            let devices = accelerator.devices.keys().map(device).collect();
            self.accelerators
                .insert(accelerator.slot.clone(), (accelerator, devices));
        }
        self
    }

    /// Devices beside cores and memory.
    pub fn accelerators(&self) -> impl Iterator<Item = &Accelerator> {
        self.accelerators.values().map(|(accelerator, _)| accelerator)
    }

    /// What a share of the devices means to the kernel that has it.
    pub fn give(&self, share: &Share) -> Given {
        let mut given = Given::default();
        for (slot, (accelerator, _)) in &self.accelerators {
            let numbers = share.devices.get(slot).into_iter().flat_map(BTreeMap::keys);
            accelerator.give(numbers.copied(), &mut given);
        }
        given
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
        let mut devices = BTreeMap::new();
        for (slot, amount) in slots.iter() {
            let (target, free) = match slot {
                "cpu" => (&mut asked.0, self.cores.values().map(|core| core.free()).sum()),
                "mem" => (&mut asked.1, self.mem.free()),
                _ if amount.is_zero() => continue,
                _ => {
                    devices.insert(slot.to_owned(), self.choose_devices(slot, amount)?);
                    continue;
                }
            };
            match amount.whole().and_then(|amount| u64::try_from(amount).ok()) {
                Some(amount) if amount <= free => *target = amount,
                _ => return Err(insufficient(slot, amount, free.to_string())),
            }
        }
        devices.retain(|_, chosen| !chosen.is_empty());
        let share = Share {
            cpu: emptiest_first(&self.cores, asked.0),
            mem: asked.1,
            devices,
        };
        self.restore(&share);
        Ok(share)
    }

    fn choose_devices(
        &self,
        slot: &str,
        amount: bai_model::SlotValue,
    ) -> Result<BTreeMap<u32, Thousandths>, Insufficient> {
        let Some((accelerator, devices)) = self.accelerators.get(slot) else {
            return Err(insufficient(slot, amount, "0".to_owned()));
        };
        let free: u64 = devices.values().map(|device| device.free()).sum();
        let asked = Thousandths::of(amount).map(|amount| accelerator.allocatable(amount));
        match asked {
            Some(0) => Ok(BTreeMap::new()),
            Some(asked) if asked <= free => {
                let chosen = emptiest_first(devices, asked).into_iter();
                Ok(chosen
                    .map(|(number, amount)| (number, Thousandths(amount)))
                    .collect())
            }
            _ => Err(insufficient(slot, amount, Thousandths(free).to_string())),
        }
    }

    /// Records a share that is held already.
    pub fn restore(&mut self, share: &Share) {
        for (core, units) in &share.cpu {
            self.cores.entry(*core).or_default().used += units;
        }
        self.mem.used = self.mem.used.saturating_add(share.mem);
        for (slot, parts) in &share.devices {
            let Some((_, devices)) = self.accelerators.get_mut(slot) else {
                // The host lost them.
                continue;
            };
            for (number, amount) in parts {
                devices.entry(*number).or_default().used += amount.0;
            }
        }
    }

    /// Takes a share back.
    pub fn release(&mut self, share: &Share) {
        for (core, units) in &share.cpu {
            if let Some(core) = self.cores.get_mut(core) {
                core.used = core.used.saturating_sub(*units);
            }
        }
        self.mem.used = self.mem.used.saturating_sub(share.mem);
        for (slot, parts) in &share.devices {
            let devices = self.accelerators.get_mut(slot).map(|(_, devices)| devices);
            let Some(devices) = devices else { continue };
            for (number, amount) in parts {
                if let Some(device) = devices.get_mut(number) {
                    device.used = device.used.saturating_sub(amount.0);
                }
            }
        }
    }
}

/// Devices with `amount` free units together, the emptiest first.
fn emptiest_first<K: Ord + Copy>(devices: &BTreeMap<K, Device>, amount: u64) -> BTreeMap<K, u64> {
    let mut by_room: Vec<(K, u64)> = devices
        .iter()
        .map(|(key, device)| (*key, device.free()))
        .collect();
    by_room.sort_by_key(|(_, free)| Reverse(*free));
    let mut remaining = amount;
    let mut chosen = BTreeMap::new();
    for (key, free) in by_room.into_iter().filter(|(_, free)| *free > 0) {
        let units = remaining.min(free);
        chosen.insert(key, units);
        remaining -= units;
        if remaining == 0 {
            break;
        }
    }
    chosen
}

fn insufficient(slot: &str, requested: bai_model::SlotValue, available: String) -> Insufficient {
    Insufficient {
        device: slot.split('.').next().unwrap_or(slot).to_owned(),
        slot: slot.to_owned(),
        requested: requested.to_string(),
        available,
    }
}

#[cfg(test)]
mod tests;
