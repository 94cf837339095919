//! Resource presets (`data-model.md` 5, 15.2).

use bai_model::ResourceSlot;

use crate::driver::params;
use crate::{Reader, Result, Tx};

/// A named amount of resources.
#[derive(Clone, Debug, PartialEq)]
pub struct PresetRow {
    /// The key.
    pub name: String,
    /// The amounts, of types that need not exist in the cluster.
    pub resource_slots: ResourceSlot,
}

impl Reader {
    /// All presets by name.
    pub async fn presets(&self) -> Result<Vec<PresetRow>> {
        let sql = "SELECT name, resource_slots FROM resource_presets ORDER BY name";
        let read = |row: &crate::driver::Row| {
            Ok(PresetRow {
                name: row.get("name")?,
                resource_slots: row.opt("resource_slots")?.unwrap_or_default(),
            })
        };
        self.list(sql, params![], read).await
    }
}

impl Tx {
    /// Adds a preset.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_resource_presets`, [`crate::Error::TooLong`].
    pub async fn insert_preset(&mut self, name: &str, slots: &ResourceSlot) -> Result<()> {
        let values = vec![("name", name.into()), ("resource_slots", slots.into())];
        self.insert("resource_presets", values, "").await?;
        Ok(())
    }
}
