//! How many files a daemon may open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files as it is allowed to. The limit that processes are started with is kept low for the
/// sake of programs that a larger one would break, which none of ours is; sessions have limits of their own. How many it
/// is now.
///
/// # Errors
/// When the system does not tell or refuses; nothing has changed then.
pub fn raise_open_files() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    tracing::debug!(before = soft, now = hard, "open files are limited");
    Ok(hard)
}

/// As [`raise_open_files`], where a daemon can do with the limit that it has.
pub fn try_raise_open_files() {
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        // Enough for the tests beside this one.
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1000), hard).expect("lowered");
        assert_eq!(raise_open_files(), Ok(hard));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}
