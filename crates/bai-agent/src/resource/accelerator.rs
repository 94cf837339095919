//! Devices beside cores and memory: NVIDIA's, and a pretended kind for trials.
//!
//! Not here: how a device gets into a session (the runtimes).

use std::collections::BTreeMap;
use std::fmt;

use bai_model::SlotValue;
use serde::{Deserialize, Serialize};

use super::nvidia::Gpu;

/// Amounts of devices in thousandths, so that they add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Thousandths(pub u64);

/// One whole device.
pub const WHOLE: u64 = 1000;

impl Thousandths {
    /// Of an amount that is asked for; none of what is negative or without end.
    pub fn of(amount: SlotValue) -> Option<Self> {
        /// More than any host has, and exact in floating point.
        const MOST: f64 = 1e12;
        let thousandths = amount.to_f64() * 1000.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the range just looked at"
        )]
        (0.0..MOST)
            .contains(&thousandths)
            .then(|| Self((thousandths + 1e-6).floor() as u64))
    }
}

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / WHOLE, self.0 % WHOLE);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{rest:03}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// The devices of one slot type.
#[derive(Clone, Debug)]
pub struct Accelerator {
    /// `cuda.device`: what comes before the dot is the type of device.
    pub slot: String,
    /// Whether several kernels may have parts of one device.
    pub is_shared: bool,
    /// By their numbers, with the names that their driver has for them.
    pub devices: BTreeMap<u32, Option<String>>,
}

/// What a kernel's devices mean to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// NVIDIA's names of the devices.
    pub gpus: Vec<String>,
    /// Variables that tell programs, and NVIDIA's hook of container engines, which devices to use.
    pub environ: BTreeMap<String, String>,
}

impl Accelerator {
    /// NVIDIA's devices, whole (`cuda.device`) or in parts (`cuda.shares`).
    pub fn cuda(gpus: &[Gpu], is_shared: bool) -> Self {
        let devices = gpus.iter().map(|gpu| (gpu.number, Some(gpu.uuid.clone())));
        Self {
            slot: if is_shared { "cuda.shares" } else { "cuda.device" }.to_owned(),
            is_shared,
            devices: devices.collect(),
        }
    }

    /// So many devices that do nothing.
    pub fn mock(count: u32, is_shared: bool) -> Self {
        Self {
            slot: if is_shared { "mock.shares" } else { "mock.device" }.to_owned(),
            is_shared,
            devices: (0..count).map(|number| (number, None)).collect(),
        }
    }

    /// The type of device.
    pub fn kind(&self) -> &str {
        self.slot.split('.').next().unwrap_or(&self.slot)
    }

    /// The part of `amount` that can be given.
    pub(super) fn allocatable(&self, amount: Thousandths) -> u64 {
        if self.is_shared {
            amount.0
        } else {
            amount.0 / WHOLE * WHOLE
        }
    }

    /// What having these devices means. Having none must be said as well: images may ask for all of them.
    pub(super) fn give(&self, numbers: impl Iterator<Item = u32>, given: &mut Given) {
        let numbers: Vec<u32> = numbers.collect();
        let is_cuda = self.kind() == "cuda";
        let names: Vec<String> = numbers
            .iter()
            .map(|number| {
                let name = self.devices.get(number).cloned().flatten();
                name.unwrap_or_else(|| number.to_string())
            })
            .collect();
        let variable = match is_cuda {
            true => "NVIDIA_VISIBLE_DEVICES".to_owned(),
            false => format!("{}_VISIBLE_DEVICES", self.kind().to_uppercase()),
        };
        let value = match names.is_empty() {
            true => "void".to_owned(),
            false => names.join(","),
        };
        // Of two slots of one type, one may have something.
        if !names.is_empty() || !given.environ.contains_key(&variable) {
            given.environ.insert(variable, value);
        }
        if is_cuda {
            given.gpus.extend(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use bai_model::SlotUnit;

    use super::*;

    #[test]
    fn amounts_are_exact() {
        let parse = |text: &str| SlotValue::parse(text, SlotUnit::Count).expect("an amount");
        for (text, expected) in [
            ("0.5", "0.5"),
            ("1", "1"),
            ("1E+1", "10"),
            ("0.001", "0.001"),
            ("1.25", "1.25"),
        ] {
            let thousandths = Thousandths::of(parse(text)).expect("an amount");
            assert_eq!(thousandths.to_string(), expected);
        }
        assert_eq!(Thousandths::of(SlotValue::from(-1)), None);
        assert_eq!(Thousandths::of(parse("Infinity")), None);
    }

    #[test]
    fn devices_are_named_as_their_driver_names_them() {
        let gpu = |number, uuid: &str| Gpu {
            number,
            uuid: uuid.to_owned(),
            name: "T4".to_owned(),
            memory: 1 << 34,
        };
        let cuda = Accelerator::cuda(&[gpu(0, "GPU-a"), gpu(1, "GPU-b")], false);
        let mut given = Given::default();
        cuda.give([1].into_iter(), &mut given);
        assert_eq!(given.gpus, ["GPU-b"]);
        assert_eq!(given.environ["NVIDIA_VISIBLE_DEVICES"], "GPU-b");
        let mut none = Given::default();
        cuda.give(std::iter::empty(), &mut none);
        assert_eq!(
            none.environ["NVIDIA_VISIBLE_DEVICES"], "void",
            "an image may ask for all"
        );
        assert!(none.gpus.is_empty());
    }
}
