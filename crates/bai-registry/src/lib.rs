//! Asks image registries what they have: the client side of the registry API, version 2 (`http-api.md` 5.10).
//!
//! [`Registry::connect`] finds out how to authenticate; [`Registry::repositories`] and [`Repository::tags`] list,
//! [`Repository::image`] tells the digest, size and labels of one tag.
//!
//! Invariants: credentials go to the registry and to the token server that it names, nowhere else; every answer has a
//! size limit and every request a deadline; at most [`MAX_REQUESTS`] requests to a registry are under way at once; what
//! passes (429, 5xx, lost connections) is tried again; an answer that is not understood is an [`Error`] with the names of
//! the registry and the image.
//!
//! Not here: what the catalogue keeps of an image, and pulling layers, which is an agent's.

mod access;
mod error;
mod http;
mod manifest;
mod options;
mod paging;
mod registry;
#[cfg(test)]
mod tests;

pub use error::{Cause, Error, Result};
pub use http::MAX_REQUESTS;
pub use manifest::Image;
pub use options::{Address, Options, Trust};
pub use registry::{Registry, Repository};
