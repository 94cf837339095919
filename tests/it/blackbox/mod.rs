//! Ring 6: the executable as users start it, with real sandboxes.

mod alone;
mod served;
