//! What this host has and who holds it.
//!
//! Invariants: what a kernel holds is recorded under its id, so that it is given back exactly once however often its
//! end is told; nothing is handed out beyond what the host has.
//!
//! Not here: quotas and the choice of a host (`bai-core`), and how limits are enforced (the runtime).

pub mod accelerator;
pub mod allocation;
pub mod discovery;
pub mod nvidia;
pub mod ports;

use std::collections::HashMap;

use bai_model::{KernelId, ResourceSlot, SlotTypes, SlotUnit, SlotValue};
use serde::{Deserialize, Serialize};

use self::accelerator::Given;
use self::allocation::{Insufficient, Pool, Share};
use self::ports::{Indices, Ports};

/// Everything that a kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub share: Share,
    /// Numbers that no other living kernel of this agent has.
    pub ports: Vec<u16>,
    /// A small number that no other living kernel of this agent has.
    pub index: u32,
}

/// Why a grant was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Insufficient(#[from] Insufficient),
    #[error("no port numbers are left")]
    NoPorts,
}

/// The host's resources and their holders.
#[derive(Debug)]
pub struct Ledger {
    pool: Pool,
    ports: Ports,
    indices: Indices,
    held: HashMap<KernelId, Grant>,
}

impl Ledger {
    pub fn new(pool: Pool, ports: Ports) -> Self {
        Self {
            pool,
            ports,
            indices: Indices::default(),
            held: HashMap::new(),
        }
    }

    /// Gives `kernel` what it asks for, or nothing at all. A kernel that holds a grant gets the same again.
    ///
    /// # Errors
    /// [`Refused`] with what is missing.
    pub fn take(&mut self, kernel: KernelId, slots: &ResourceSlot, ports: usize) -> Result<Grant, Refused> {
        if let Some(grant) = self.held.get(&kernel) {
            return Ok(grant.clone());
        }
        let share = self.pool.allocate(slots)?;
        let Some(ports) = self.ports.take(ports) else {
            self.pool.release(&share);
            return Err(Refused::NoPorts);
        };
        let grant = Grant {
            share,
            ports,
            index: self.indices.take(),
        };
        self.held.insert(kernel, grant.clone());
        Ok(grant)
    }

    /// Records what an adopted kernel holds already, even if the host has become smaller than that.
    pub fn restore(&mut self, kernel: KernelId, grant: &Grant) {
        if self.held.insert(kernel, grant.clone()).is_none() {
            self.pool.restore(&grant.share);
            self.ports.restore(&grant.ports);
            self.indices.restore(grant.index);
        }
    }

    /// As [`Ledger::restore`], for a kernel of another agent, which has no number among ours yet.
    pub fn inherit(&mut self, kernel: KernelId, grant: &mut Grant) {
        grant.index = self.indices.take();
        self.restore(kernel, grant);
    }

    /// Ports that there are, held or not.
    pub fn port_count(&self) -> usize {
        self.ports.count()
    }

    /// Gives `kernel`, which holds something, more ports, or none at all.
    pub fn add_ports(&mut self, kernel: KernelId, count: usize) -> Option<Vec<u16>> {
        let grant = self.held.get_mut(&kernel)?;
        let more = self.ports.take(count)?;
        grant.ports.extend(&more);
        Some(more)
    }

    /// Takes back ports of a kernel that goes on.
    pub fn return_ports(&mut self, kernel: KernelId, ports: &[u16]) {
        if let Some(grant) = self.held.get_mut(&kernel) {
            grant.ports.retain(|port| !ports.contains(port));
            self.ports.release(ports);
        }
    }

    /// Gives `kernel` another port for one that it holds, which others may then have. `None` if there is no other.
    pub fn exchange_port(&mut self, kernel: KernelId, port: u16) -> Option<u16> {
        let another = self.add_ports(kernel, 1)?.pop()?;
        self.return_ports(kernel, &[port]);
        Some(another)
    }

    /// Takes back what `kernel` holds, if anything.
    pub fn release(&mut self, kernel: KernelId) {
        if let Some(grant) = self.held.remove(&kernel) {
            self.pool.release(&grant.share);
            self.ports.release(&grant.ports);
            self.indices.release(grant.index);
        }
    }

    /// What a kernel's devices mean to it.
    pub fn give(&self, share: &Share) -> Given {
        self.pool.give(share)
    }

    /// What the host offers in all.
    pub fn capacity(&self) -> ResourceSlot {
        let amount = |amount: u64| SlotValue::from(i64::try_from(amount).unwrap_or(i64::MAX));
        let mut capacity: ResourceSlot = [
            ("cpu", amount(self.pool.cpu_capacity())),
            ("mem", amount(self.pool.mem_capacity())),
        ]
        .into_iter()
        .collect();
        for accelerator in self.pool.accelerators() {
            capacity.set(&accelerator.slot, amount(accelerator.devices.len() as u64));
        }
        capacity
    }

    /// The types of what the host offers.
    pub fn slot_types(&self) -> SlotTypes {
        let mut types = SlotTypes::intrinsic();
        for accelerator in self.pool.accelerators() {
            types.insert(&accelerator.slot, SlotUnit::Count);
        }
        types
    }
}
