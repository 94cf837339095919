//! Real services, started by the test that needs them: on loopback, on a free port, with their data in its folder, and
//! stopped with it. Where a program is missing the test says `SKIPPED`.

pub mod registry;
