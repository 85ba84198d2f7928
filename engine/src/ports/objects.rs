//! Where firmware bytes are: a local folder, or S3. Objects are named by the SHA-256 of their bytes.

use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

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

    /// Removes an object; it is no error when it is gone already.
    async fn remove(&self, name: &str) -> Result<(), ObjectError>;

    /// Names of all objects, for reconciliation at the start.
    async fn names(&self) -> Result<Vec<String>, ObjectError>;

    /// Proves that the store can be written to (for `/health/detailed`).
    async fn ping(&self) -> Result<(), ObjectError>;
}
