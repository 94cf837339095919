//! WebSocket endpoints (`http-api.md` 4.9). Checks come before the upgrade and answer as plain HTTP.

pub(crate) mod execute;
