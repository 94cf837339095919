//! Sizes in bytes with a text form (`data-model.md` 11).

/// Bytes, possibly infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinarySize {
    Bytes(i128),
    Infinity,
}
