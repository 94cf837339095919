//! NVIDIA's devices, asked of the driver's own library, which is looked for at run time.
//!
//! Invariants: a host without the library, or whose driver does not work, has no devices, and says why at the start.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::{Mutex, PoisonError};

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
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

/// A program on a device at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The device's.
    pub number: u32,
    /// The program's, as the host counts.
    pub pid: u32,
    /// Bytes.
    pub memory: u64,
    /// Percent of the device's time.
    pub busy: u32,
}

/// The driver's library, open.
#[derive(Debug)]
pub struct Driver {
    nvml: Nvml,
    /// By device, the time of the last measurement of its programs that was read.
    read: Mutex<BTreeMap<u32, u64>>,
}

impl Driver {
    /// Opens the library at its usual place, or `elsewhere`. `None` where there is none. Blocking.
    ///
    /// # Errors
    /// Why the library that is there does not work.
    pub fn open(elsewhere: Option<&OsStr>) -> Result<Option<Self>, String> {
        let library = elsewhere.unwrap_or(OsStr::new(LIBRARY));
        match Nvml::builder().lib_path(library).init() {
            Ok(nvml) => Ok(Some(Self {
                nvml,
                read: Mutex::default(),
            })),
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

    /// The programs that compute on the devices. A driver that does not tell them has none; one that does not tell how busy
    /// they are has idle ones. Blocking.
    pub fn processes(&self) -> Vec<Process> {
        let count = self.nvml.device_count().unwrap_or(0);
        let on = |number| self.processes_on(number).unwrap_or_default();
        (0..count).flat_map(on).collect()
    }

    fn processes_on(&self, number: u32) -> Result<Vec<Process>, NvmlError> {
        let device = self.nvml.device_by_index(number)?;
        let running = device.running_compute_processes()?;
        // Measurements since those that were read before; the last one of each program counts.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read.entry(number).or_default();
        let mut samples = device.process_utilization_stats(*read).unwrap_or_default();
        samples.sort_by_key(|sample| sample.timestamp);
        *read = samples.last().map_or(*read, |last| last.timestamp.max(*read));
        let busy: BTreeMap<u32, u32> = samples
            .into_iter()
            .map(|sample| (sample.pid, sample.sm_util))
            .collect();
        let process = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| Process {
            number,
            pid: process.pid,
            memory: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => bytes,
                UsedGpuMemory::Unavailable => 0,
            },
            busy: busy.get(&process.pid).copied().unwrap_or(0),
        };
        Ok(running.into_iter().map(process).collect())
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
        #ifndef OLD
        typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process_t;
        typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } sample_t;
        enum { NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
        int nvmlDeviceGetComputeRunningProcesses_v3(int *device, unsigned *count, process_t *processes)
        {
            if (device != devices) return NOT_SUPPORTED;
            int fits = *count >= 2;
            *count = 2;
            if (!fits) return INSUFFICIENT_SIZE;
            processes[0] = (process_t){ 100, 400, -1, -1 };
            /* Its memory is not told. */
            processes[1] = (process_t){ 200, -1, -1, -1 };
            return 0;
        }
        int nvmlDeviceGetProcessUtilization(int *device, sample_t *samples, unsigned *count, unsigned long long seen)
        {
            if (seen >= 20) return NOT_FOUND;
            int fits = *count >= 2 && samples;
            *count = 2;
            if (!fits) return INSUFFICIENT_SIZE;
            samples[0] = (sample_t){ 100, 20, 30, 0, 0, 0 };
            samples[1] = (sample_t){ 100, 10, 99, 0, 0, 0 };
            return 0;
        }
        #endif
    "#;

    /// The driver with that library, or `None` where none can be made.
    fn pretended(options: &[&str]) -> Option<(Driver, tempfile::TempDir)> {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, library) = (
            folder.path().join("nvml.c"),
            folder.path().join("libnvidia-ml.so.1"),
        );
        std::fs::write(&source, LIBRARY).expect("written");
        let compiled = std::process::Command::new("cc")
            .args(options)
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("SKIPPED: NVIDIA's library, because there is no C compiler to make a pretended one");
            return None;
        }
        let driver = Driver::open(Some(library.as_os_str()));
        Some((driver.expect("it works").expect("it is there"), folder))
    }

    #[test]
    fn a_driver_is_asked_for_the_programs_on_its_devices() {
        let Some((driver, _folder)) = pretended(&[]) else {
            return;
        };
        let process = |pid, memory, busy| Process {
            number: 0,
            pid,
            memory,
            busy,
        };
        assert_eq!(driver.processes(), [process(100, 400, 30), process(200, 0, 0)]);
        // Nothing new was measured, which the library takes for an error.
        assert_eq!(driver.processes(), [process(100, 400, 0), process(200, 0, 0)]);
    }

    #[test]
    fn a_driver_without_those_functions_has_no_programs() {
        let Some((driver, _folder)) = pretended(&["-DOLD"]) else {
            return;
        };
        assert_eq!(driver.usage().len(), 2);
        assert_eq!(driver.processes(), []);
    }

    #[test]
    fn a_driver_is_asked_for_its_devices() {
        let Some((driver, _folder)) = pretended(&[]) else {
            return;
        };
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
