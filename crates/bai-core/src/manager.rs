//! The manager: shared handles and the life of its background work.

/// Everything that operations share. Cheap to clone is not needed: callers hold an `Arc<Manager>`.
#[derive(Debug)]
pub struct Manager {}

/// What a manager is made of.
#[derive(Debug)]
pub struct ManagerOptions {}
