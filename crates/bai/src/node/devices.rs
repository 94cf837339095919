//! What of this host is offered to sessions, as `[resource]` and `[bai]` say.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bai_agent::resource::accelerator::Accelerator;
use bai_agent::resource::discovery::Wanted;
use bai_agent::resource::nvidia::Driver;

use crate::config::agent::{AgentConfig, Cuda};
use crate::sessions::RuntimeChoice;

/// The devices beside cores and memory, and NVIDIA's driver where it has some.
///
/// # Errors
/// When the process is going down.
pub async fn find(config: &AgentConfig, runtime: RuntimeChoice) -> Result<(Wanted, Option<Arc<Driver>>)> {
    let (resource, own) = (&config.resource, &config.bai);
    let mut accelerators = Vec::new();
    for (count, is_shared) in [(own.mock_devices, false), (own.mock_shares, true)] {
        if count > 0 {
            accelerators.push(Accelerator::mock(
                u32::try_from(count).unwrap_or(u32::MAX),
                is_shared,
            ));
        }
    }
    let mut driver = None;
    // Sandboxed processes do not see the devices.
    if own.cuda != Cuda::Off && runtime == RuntimeChoice::Docker {
        let is_shared = own.cuda == Cuda::Shares;
        let found = tokio::task::spawn_blocking(open_driver).await;
        if let Some((opened, gpus)) = found.context("cannot look for NVIDIA's devices")? {
            for gpu in &gpus {
                tracing::info!(
                    number = gpu.number,
                    uuid = gpu.uuid,
                    memory = gpu.memory,
                    "found {}",
                    gpu.name
                );
            }
            accelerators.push(Accelerator::cuda(&gpus, is_shared));
            driver = Some(Arc::new(opened));
        }
    }
    let wanted = Wanted {
        overcommit: own.cpu_overcommit,
        reserved_cpu: resource.reserved_cpu,
        reserved_mem: resource.reserved_mem,
        accelerators,
        ..Wanted::default()
    };
    Ok((wanted, driver))
}

fn open_driver() -> Option<(Driver, Vec<bai_agent::resource::nvidia::Gpu>)> {
    let found = Driver::open(None).and_then(|driver| {
        let Some(driver) = driver else { return Ok(None) };
        let gpus = driver.gpus()?;
        Ok(Some((driver, gpus)))
    });
    match found {
        Ok(found) => found.filter(|(_, gpus)| !gpus.is_empty()),
        Err(error) => {
            tracing::error!("{error}; sessions get none of its devices (bai.cuda)");
            None
        }
    }
}
