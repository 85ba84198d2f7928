//! Where firmware bytes are. Objects are named by the SHA-256 of their bytes.
//!
//! An upload arrives with this process, in a folder of its own. Where there is a store that several processes share (S3),
//! it is *handed over* to it once its row is there: at once, or later when the shared store is away. Without one,
//! nothing ever waits to be handed over.

use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::firmware::Storage;
use futures_util::Stream;
use jiff::Timestamp;

/// Why bytes could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("object {0} is missing from the store")]
    Missing(String),
    /// The store is full.
    #[error("the object store is full")]
    Full(#[source] std::io::Error),
    /// The store cannot be reached or failed.
    #[error("the object store failed")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Bytes of an object, in order.
pub type ObjectStream = Pin<Box<dyn Stream<Item = Result<Bytes, ObjectError>> + Send>>;

/// An object being written. Dropped without `commit`, it leaves nothing behind.
#[async_trait]
pub trait ObjectWriter: Send {
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError>;

    /// Makes the object durable under this name; an object of that name already there is kept (same name, same bytes).
    async fn commit(self: Box<Self>, name: &str) -> Result<(), ObjectError>;
}

/// The object store.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// Begins an object.
    async fn create(&self) -> Result<Box<dyn ObjectWriter>, ObjectError>;

    /// Bytes `range` of an object.
    async fn open(&self, name: &str, range: Range<u64>) -> Result<ObjectStream, ObjectError>;

    /// Up to `length` bytes at `offset`, in one piece; fewer at the end.
    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ObjectError>;

    /// Takes back an object that has not been handed over; it is no error when it is gone already. What was handed over
    /// stays: other processes may use it.
    async fn remove(&self, name: &str) -> Result<(), ObjectError>;

    /// A row names the object that was committed.
    async fn recorded(&self, name: &str) -> Result<(), ObjectError>;

    /// Names of objects that were committed here and not said to be [`recorded`](Self::recorded): their upload died between the
    /// object and its row. Whatever else lies here is nobody's to remove, whether or not this database knows it.
    async fn unrecorded(&self) -> Result<Vec<String>, ObjectError>;

    /// Where objects end up.
    fn storage(&self) -> Storage {
        Storage::Local
    }

    /// Names of those that belong to the shared store and are not let go here yet.
    async fn waiting(&self) -> Result<Vec<String>, ObjectError> {
        Ok(Vec::new())
    }

    /// Brings an object to the shared store. When it is done, what is there has been read back and is what was uploaded.
    /// Done again, it changes nothing.
    async fn hand_over(&self, _name: &str) -> Result<(), ObjectError> {
        Ok(())
    }

    /// Removes the copy with this process of an object that was handed over.
    async fn let_go(&self, _name: &str) -> Result<(), ObjectError> {
        Ok(())
    }

    /// A URL at which the shared store itself serves an object that was handed over, without any header, from `now` on for
    /// so long; `None` where clients cannot reach it. People see `file_name`.
    async fn link(
        &self,
        _name: &str,
        _file_name: &str,
        _now: Timestamp,
        _lifetime: Duration,
    ) -> Result<Option<String>, ObjectError> {
        Ok(None)
    }

    /// Proves that everything can be written to (for `/health/detailed`).
    async fn ping(&self) -> Result<(), ObjectError>;
}
