//! The image catalogue in the configuration store: resolution of names and aliases, slot ranges
//! (`http-api.md` 5.9, `data-model.md` 13).
