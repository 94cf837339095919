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
                // Drivers before 510 do not tell it to this library.
                memory: device.memory_info().map_or(0, |memory| memory.total),
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

    /// A driver's library with two devices, as far as it is called here.
    const LIBRARY: &str = r#"
        #include <string.h>
        typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_t;
        typedef struct { unsigned gpu, memory; } utilization_t;
        static int devices[2];
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "550.1", size); return 0; }
        int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned n, int **device) { *device = &devices[n]; return n < 2 ? 0 : 2; }
        int nvmlDeviceGetUUID(int *device, char *text, unsigned size)
            { strncpy(text, device == devices ? "GPU-a" : "GPU-b", size); return 0; }
        int nvmlDeviceGetName(int *device, char *text, unsigned size) { strncpy(text, "T4", size); return 0; }
        int nvmlDeviceGetMemoryInfo_v2(int *device, memory_t *memory)
            { memory->total = 1000; memory->used = 10; memory->free = 990; return 0; }
        int nvmlDeviceGetUtilizationRates(int *device, utilization_t *rates) { rates->gpu = 25; return 0; }
    "#;

    #[test]
    fn a_driver_is_asked_for_its_devices() {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, library) = (
            folder.path().join("nvml.c"),
            folder.path().join("libnvidia-ml.so.1"),
        );
        std::fs::write(&source, LIBRARY).expect("written");
        let compiled = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("SKIPPED: NVIDIA's library, because there is no C compiler to make a pretended one");
            return;
        }
        let driver = Driver::open(Some(library.as_os_str()))
            .expect("it works")
            .expect("it is there");
        assert_eq!(driver.version(), "550.1");
        let gpus = driver.gpus().expect("devices");
        let found: Vec<_> = gpus
            .iter()
            .map(|gpu| (gpu.number, gpu.uuid.as_str(), gpu.memory))
            .collect();
        assert_eq!(found, [(0, "GPU-a", 1000), (1, "GPU-b", 1000)]);
        let usage = Usage {
            number: 1,
            memory_used: 10,
            memory: 1000,
            busy: 25,
        };
        assert_eq!(driver.usage()[1], usage);
    }

    #[test]
    fn a_library_that_is_none_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("libnvidia-ml.so.1");
        std::fs::write(&library, "not a library").expect("written");
        // The system's loader does not tell it from one that is missing.
        assert!(Driver::open(Some(library.as_os_str())).is_ok_and(|driver| driver.is_none()));
    }

    #[test]
    fn a_host_without_the_library_has_no_devices() {
        let opened = Driver::open(Some(OsStr::new("/nowhere/libnvidia-ml.so.1")));
        assert!(opened.is_ok_and(|driver| driver.is_none()));
    }
}
