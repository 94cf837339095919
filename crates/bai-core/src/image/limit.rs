//! Bounds for the slots of one image's sessions (`http-api.md` 5.7, `set-image-resource-limit`).

use bai_model::SlotValue;

use super::{Catalogue, check_administrator};
use crate::manager::slot_types;
use crate::{Error, Op, Result};

impl Catalogue {
    /// Sets the least and the most of a slot that sessions of an image may have, as given: a number, or for slots of bytes
    /// a size such as `1g`. A side that is `None` stays as it is. Returns the image's canonical reference. For superadmins.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for an unknown image or slot, a malformed amount, or a least above the most.
    pub async fn image_set_resource_limit(
        &self,
        op: &Op,
        reference: &str,
        slot: &str,
        min: Option<&str>,
        max: Option<&str>,
    ) -> Result<String> {
        check_administrator(op)?;
        let record = self.existing(reference).await?;
        let types = slot_types(&self.config).await?;
        let unit = types.unit(slot).ok_or_else(|| {
            let known: Vec<&str> = types.names().collect();
            Error::invalid(format!(
                "Unknown resource slot: {slot} (known: {})",
                known.join(", ")
            ))
        })?;
        let amount = |text: &str| match SlotValue::parse(text, unit) {
            Ok(amount) if amount >= SlotValue::ZERO => Ok(amount),
            Ok(_) => Err(Error::invalid(format!(
                "Invalid amount of {slot}: {text}: below nothing"
            ))),
            Err(error) => Err(Error::invalid(format!(
                "Invalid amount of {slot}: {text}: {error}"
            ))),
        };
        let stored = record.resource_limits.get(slot).cloned().unwrap_or_default();
        let new_min = min.map(amount).transpose()?;
        let new_max = max.map(amount).transpose()?;
        // What is stored may be malformed; then it bounds nothing.
        let least = new_min.or_else(|| amount(stored.min.as_deref()?).ok());
        let most = new_max.or_else(|| amount(stored.max.as_deref()?).ok());
        if let (Some(least), Some(most)) = (least, most)
            && least > most
        {
            return Err(Error::invalid(format!(
                "The least of {slot} would be {least}, above the most, {most}"
            )));
        }
        let path = format!("{}/resource/{slot}", record.reference.tag_path());
        let sides = [("min", min), ("max", max)];
        let entries = sides
            .into_iter()
            .filter_map(|(bound, text)| Some((format!("{path}/{bound}"), text?.to_owned())));
        self.config.put_all(&entries.collect::<Vec<_>>()).await?;
        self.forget();
        Ok(record.reference.canonical())
    }
}
