//! What must not stop halfway when whoever asked for it goes away.

use std::future::Future;

use crate::{Error, Result};

/// Carries work on to its end even when the answer is no longer waited for: a client that hangs up drops its request,
/// and with it everything that is not a task of its own.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = tokio::spawn(work).await;
    ended.map_err(|error| Error::Internal(Box::new(error)))?
}
