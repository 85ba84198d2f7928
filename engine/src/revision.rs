//! Who changes what they have read says so: nobody's change is laid over another that they have not seen.

use crate::{Error, Result};

/// 409 when `what` is no longer of the revision that somebody has seen; who names none changes whatever there is.
pub(crate) fn is_of(expected: Option<i64>, what: &str, revision: i64) -> Result<()> {
    if expected.is_none_or(|expected| expected == revision) {
        return Ok(());
    }
    Err(Error::conflict(
        "changed_meanwhile",
        format!("{what} is at revision {revision} by now; read it and try again"),
    ))
}
