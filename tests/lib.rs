//! The tests are in `it/`; this library is empty.
