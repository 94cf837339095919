//! `/auth` (`http-api.md` 4.2).

pub(super) mod authorize;
pub(super) mod signup;
pub(super) mod test;
