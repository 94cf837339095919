//! NVIDIA's devices, asked of the driver's own library, which is looked for at run time.
//!
//! Invariants: a host without the library, or whose driver does not work, has no devices, and says why at the start.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// What the library is called in every distribution of the driver.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub number: u32,
    /// `GPU-…`, which stays when numbers change.
    pub uuid: String,
    pub name: String,
    /// Bytes.
    pub memory: u64,
}

/// What a device does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub number: u32,
    /// Bytes used and there.
    pub memory_used: u64,
    pub memory: u64,
    /// Percent of the time.
    pub busy: u32,
}

/// The driver's library, open.
#[derive(Debug)]
pub struct Driver {
    nvml: Nvml,
}

impl Driver {
    /// Opens the library at its usual place, or `elsewhere`. `None` where there is none. Blocking.
    ///
    /// # Errors
    /// Why the library that is there does not work.
    pub fn open(elsewhere: Option<&OsStr>) -> Result<Option<Self>, String> {
        let library = elsewhere.unwrap_or(OsStr::new(LIBRARY));
        match Nvml::builder().lib_path(library).init() {
            Ok(nvml) => Ok(Some(Self { nvml })),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => Ok(None),
            Err(error) => Err(format!("NVIDIA's driver does not work: {error}")),
        }
    }

    /// The driver's version.
    pub fn version(&self) -> String {
        self.nvml
            .sys_driver_version()
            .unwrap_or_else(|_| "unknown".to_owned())
    }

    /// The devices. Blocking.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn gpus(&self) -> Result<Vec<Gpu>, String> {
        let gpu = |number| -> Result<Gpu, NvmlError> {
            let device = self.nvml.device_by_index(number)?;
            Ok(Gpu {
                number,
                uuid: device.uuid()?,
                name: device.name()?,
                memory: device.memory_info()?.total,
            })
        };
        let all = |count| (0..count).map(gpu).collect::<Result<Vec<_>, _>>();
        let found = self.nvml.device_count().and_then(all);
        found.map_err(|error| format!("NVIDIA's driver does not list its devices: {error}"))
    }

    /// What the devices do; those that do not tell are left out. Blocking.
    pub fn usage(&self) -> Vec<Usage> {
        let usage = |number| {
            let device = self.nvml.device_by_index(number).ok()?;
            let memory = device.memory_info().ok()?;
            Some(Usage {
                number,
                memory_used: memory.used,
                memory: memory.total,
                busy: device.utilization_rates().map_or(0, |rates| rates.gpu),
            })
        };
        let count = self.nvml.device_count().unwrap_or(0);
        (0..count).filter_map(usage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_library_has_no_devices() {
        let opened = Driver::open(Some(OsStr::new("/nowhere/libnvidia-ml.so.1")));
        assert!(opened.is_ok_and(|driver| driver.is_none()));
    }
}
