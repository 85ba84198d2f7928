//! Room for the fleet's connections in the process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Error;

/// Files beside connections: the runtime's own, the terminal, the state file.
const SPARE: u64 = 64;

/// Raises the limit on open files as far as needed and allowed.
pub(super) fn ensure_open_files(devices: usize, downloads: usize) -> Result<(), Error> {
    let needed = (devices + downloads) as u64 + SPARE;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        // Not told: the first connection that fails will tell.
        return Ok(());
    };
    if soft >= needed {
        return Ok(());
    }
    let raised = needed <= hard && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok();
    if raised {
        return Ok(());
    }
    Err(Error::OpenFiles {
        devices,
        needed,
        limit: hard.min(soft),
    })
}
