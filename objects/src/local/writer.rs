//! Writing an object: big pieces, one of them on its way to the file while the next one gathers.

use std::fs::File;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectWriter};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::layout::Layout;
use super::temporary::Temporary;
use super::{blocking, failed};

/// Bytes that gather before they are written in one go: a hand-over to the blocking threads costs some 20 µs, which
/// a piece of this size makes small. A writer holds at most two pieces.
const PIECE_BYTES: usize = 1024 * 1024;
/// Bytes after which the disk is set to work in the background, so that the last sync finds little to do.
const FLUSH_BYTES: usize = 16 * 1024 * 1024;

/// Where the temporary is: at rest here, or with the thread that writes a piece.
enum At {
    Rest(Temporary),
    Writing(JoinHandle<io::Result<Temporary>>),
    Lost,
}

/// An object being written.
pub(super) struct Writer {
    layout: Arc<Layout>,
    at: At,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    unflushed_bytes: usize,
    flushing: Option<JoinHandle<io::Result<()>>>,
}

impl Writer {
    pub(super) fn new(layout: Arc<Layout>, temporary: Temporary) -> Self {
        let at = At::Rest(temporary);
        Self {
            layout,
            at,
            gathered: Vec::new(),
            gathered_bytes: 0,
            unflushed_bytes: 0,
            flushing: None,
        }
    }

    /// Waits for the piece on its way and takes the temporary.
    async fn take(&mut self) -> Result<Temporary, ObjectError> {
        match std::mem::replace(&mut self.at, At::Lost) {
            At::Rest(temporary) => Ok(temporary),
            At::Writing(task) => match task.await {
                Ok(done) => done.map_err(failed),
                Err(gone) => Err(ObjectError::Unavailable(Box::new(gone))),
            },
            At::Lost => Err(failed(io::Error::other(
                "an earlier write of this object failed",
            ))),
        }
    }

    /// Sends what has gathered on its way.
    async fn push(&mut self) -> Result<(), ObjectError> {
        let mut temporary = self.take().await?;
        let pieces = std::mem::take(&mut self.gathered);
        self.unflushed_bytes += std::mem::take(&mut self.gathered_bytes);
        let idle = self.flushing.as_ref().is_none_or(JoinHandle::is_finished);
        if self.unflushed_bytes >= FLUSH_BYTES && idle {
            self.unflushed_bytes = 0;
            self.flushed().await?;
            self.flush_behind(&temporary)?;
        }
        self.at = At::Writing(spawn_blocking(move || {
            temporary.write_all(&pieces).map(|()| temporary)
        }));
        Ok(())
    }

    /// Waits for the background sync, if there is one. The system tells an error once and forgets it: whoever does
    /// not ask here would make an object durable that is not.
    async fn flushed(&mut self) -> Result<(), ObjectError> {
        let Some(flushing) = self.flushing.take() else {
            return Ok(());
        };
        let done = flushing.await;
        done.map_err(|gone| ObjectError::Unavailable(Box::new(gone)))?
            .map_err(failed)
    }

    fn flush_behind(&mut self, temporary: &Temporary) -> Result<(), ObjectError> {
        let handle: File = temporary.second_handle().map_err(failed)?;
        self.flushing = Some(spawn_blocking(move || handle.sync_data()));
        Ok(())
    }
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes >= PIECE_BYTES {
            self.push().await
        } else {
            Ok(())
        }
    }

    async fn commit(mut self: Box<Self>, name: &str) -> Result<(), ObjectError> {
        let object = self.layout.object(name);
        let object =
            object.ok_or_else(|| failed(io::Error::other("an object's name is 64 hex digits")))?;
        self.push().await?;
        let temporary = self.take().await?;
        self.flushed().await?;
        let layout = Arc::clone(&self.layout);
        blocking(move || temporary.install(&layout, &object).map_err(failed)).await
    }
}

impl Drop for Writer {
    /// Removing a large file takes its time, so it is left to the blocking threads where there are any. A piece on
    /// its way brings its temporary to its end by itself.
    fn drop(&mut self) {
        if let At::Rest(temporary) = std::mem::replace(&mut self.at, At::Lost)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(temporary));
        }
    }
}
