//! Named places at which a test may end this process as a power button would.
//!
//! `NEARWIRE_KILL_AT=journal.before-write:3` sends this process SIGKILL when it passes the point
//! `journal.before-write` for the third time. Debug builds and builds with the feature
//! `kill-points` listen; in other builds both functions compile to nothing.

/// The environment variable that names the point and, after a colon, the pass (from 1).
pub const VARIABLE: &str = "NEARWIRE_KILL_AT";

#[cfg(any(debug_assertions, feature = "kill-points"))]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Target {
        name: String,
        pass: u64,
        passed: AtomicU64,
    }

    static TARGET: LazyLock<Option<Target>> = LazyLock::new(|| {
        let text = std::env::var(super::VARIABLE).ok()?;
        let (name, pass) = match text.rsplit_once(':') {
            Some((name, pass)) => (name.to_owned(), pass.parse().unwrap_or(1)),
            None => (text, 1),
        };
        Some(Target {
            name,
            pass,
            passed: AtomicU64::new(0),
        })
    });

    pub(super) fn is_armed(name: &str) -> bool {
        TARGET.as_ref().is_some_and(|target| target.name == name)
    }

    pub(super) fn pass(name: &str) {
        let Some(target) = TARGET.as_ref().filter(|target| target.name == name) else {
            return;
        };
        if target.passed.fetch_add(1, Ordering::Relaxed) + 1 == target.pass {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Whether `name` is the point at which this process is to be killed.
#[must_use]
#[inline]
pub fn is_armed(name: &str) -> bool {
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    return armed::is_armed(name);
    #[cfg(not(any(debug_assertions, feature = "kill-points")))]
    {
        let _ = name;
        false
    }
}

/// Ends this process here if [`VARIABLE`] says so.
#[inline]
pub fn kill_point(name: &str) {
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    armed::pass(name);
    #[cfg(not(any(debug_assertions, feature = "kill-points")))]
    let _ = name;
}
