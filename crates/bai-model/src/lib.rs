//! The vocabulary of bai: typed ids, session and kernel states with their legal transitions, resource-slot
//! arithmetic, image references, roles, permissions, policies and credentials.
//!
//! Invariants: values are plain data; nothing here does I/O, reads a clock or draws randomness (both are
//! arguments, see [`time::Clock`] and [`random::Random`]); parsing never panics, whatever the input.
//!
//! Not here: SQL, HTTP, wire framing, and every rule that needs more than one entity (those are in `bai-core`).

pub mod agent;
pub mod binary_size;
pub mod credential;
pub mod ids;
pub mod image_ref;
pub mod kernel;
pub mod policy;
mod python;
pub mod random;
pub mod role;
pub mod slot;
pub mod time;

pub use agent::AgentStatus;
pub use binary_size::{BinarySize, SizeUnit};
pub use credential::{AccessKey, SecretKey};
pub use ids::{AgentId, DomainName, GroupId, KernelId, RunId, SessionName, UserId, VFolderId};
pub use image_ref::ImageRef;
pub use kernel::KernelStatus;
pub use policy::{DefaultForUnspecified, KeypairResourcePolicy};
pub use role::{UserRole, VFolderPermission};
pub use slot::{ResourceSlot, SlotTypes, SlotUnit, SlotValue};
