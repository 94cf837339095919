//! What a session asks for, made out of its request and its image's limits (`data-model.md` 10.12, `http-api.md` 4.8.1
//! step 7).

use bai_model::slot::SlotError;
use bai_model::{ResourceSlot, SlotTypes};
use serde_json::{Map, Value};

use super::RequestedResources;
use crate::image::Image;
use crate::{Error, Result};

/// The full request: every known slot, filled up with the image's minimum.
///
/// # Errors
/// [`Error::InvalidParameters`] for unknown slots, unreadable amounts and amounts outside the image's range.
pub(super) fn requested_slots(
    resources: &RequestedResources,
    image: &Image,
    types: &SlotTypes,
) -> Result<ResourceSlot> {
    let asked = match resources {
        RequestedResources::Slots(slots) => slots.clone(),
        RequestedResources::Legacy { gpus: true, .. } => {
            return Err(Error::invalid("Client upgrade required to use GPUs (v19.03+)."));
        }
        RequestedResources::Legacy { tpus: true, .. } => {
            return Err(Error::invalid("Client upgrade required to use TPUs (v19.03+)."));
        }
        RequestedResources::Legacy { memory, cores, .. } => legacy_slots(memory.as_ref(), cores.as_ref()),
    };
    if let Some((name, _)) = asked
        .iter()
        .find(|(name, amount)| !amount.is_null() && types.unit(name).is_none())
    {
        return Err(Error::invalid(format!("Unknown requested resource slot: {name}")));
    }
    let requested = ResourceSlot::from_user_input(&asked, Some(types)).map_err(|error| {
        let why = match error {
            SlotError::Unconvertible { slot, value, .. } => {
                format!("{slot} cannot be {value}; use a number or, of bytes, a size such as 512m")
            }
            SlotError::UnknownSlot(slot) => format!("{slot} is unknown"),
        };
        let text = "Your resource request has resource type(s) not supported by the image.";
        Error::invalid(format!("{text} ({why})"))
    })?;
    let requested = requested.filled_with_minimum(&image.minimum);
    if !requested.names_below(&image.minimum).is_empty() {
        let limits = image.minimum.humanized(types);
        return Err(Error::invalid(format!(
            "Your resource request is smaller than the minimum required by the image. ({limits})"
        )));
    }
    if !requested.fits_within(&image.maximum) {
        let limits = image.maximum.humanized(types);
        return Err(Error::invalid(format!(
            "Your resource request is larger than the maximum allowed by the image. ({limits})"
        )));
    }
    Ok(requested)
}

/// `instanceCores` and `instanceMemory` (GiB) as slots.
fn legacy_slots(memory: Option<&Value>, cores: Option<&Value>) -> Map<String, Value> {
    let mut slots = Map::new();
    if let Some(cores) = cores {
        slots.insert("cpu".to_owned(), cores.clone());
    }
    if let Some(memory) = memory {
        let gibibytes = memory.as_str().map_or_else(|| memory.to_string(), str::to_owned);
        slots.insert("mem".to_owned(), Value::String(format!("{gibibytes}g")));
    }
    slots
}
