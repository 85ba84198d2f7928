//! An object store far away: each read of an image waits until the test lets it go on.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectStream, ObjectWriter, Objects};
use device_ota_objects::LocalFolder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// The store, once its folder is known.
pub(crate) struct FarObjects(mpsc::UnboundedSender<Read>);

/// What is read.
pub(crate) struct Reads(mpsc::UnboundedReceiver<Read>);

/// A read that waits for its answer.
pub(crate) struct Read {
    /// Its first byte.
    pub(crate) from: u64,
    go_on: oneshot::Sender<()>,
}

impl Read {
    pub(crate) fn go_on(self) {
        self.go_on.send(()).ok();
    }
}

impl Reads {
    /// The next one.
    pub(crate) async fn next(&mut self) -> Read {
        let read = timeout(Duration::from_secs(30), self.0.recv()).await;
        read.expect("something is read").unwrap()
    }

    /// The next one, if there is one by now.
    pub(crate) fn now(&mut self) -> Option<u64> {
        self.0.try_recv().ok().map(|read| read.from)
    }

    /// Answers each after so long; counts them.
    pub(crate) fn after(mut self, distance: Duration) -> Arc<AtomicUsize> {
        let count = Arc::<AtomicUsize>::default();
        let counted = count.clone();
        tokio::spawn(async move {
            while let Some(read) = self.0.recv().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::time::sleep(distance).await;
                    read.go_on();
                });
            }
        });
        count
    }
}

impl FarObjects {
    pub(crate) fn new() -> (Self, Reads) {
        let (send, reads) = mpsc::unbounded_channel();
        (Self(send), Reads(reads))
    }

    pub(crate) fn over(self, folder: &Path) -> Arc<dyn Objects> {
        Arc::new(Store {
            folder: LocalFolder::open(folder).unwrap(),
            reads: self.0,
        })
    }
}

struct Store {
    folder: LocalFolder,
    reads: mpsc::UnboundedSender<Read>,
}

impl Store {
    async fn wait(&self, from: u64) {
        let (go_on, told) = oneshot::channel();
        self.reads.send(Read { from, go_on }).ok();
        told.await.ok();
    }
}

#[async_trait]
impl Objects for Store {
    async fn create(&self) -> Result<Box<dyn ObjectWriter>, ObjectError> {
        self.folder.create().await
    }

    async fn open(&self, name: &str, range: Range<u64>) -> Result<ObjectStream, ObjectError> {
        self.wait(range.start).await;
        self.folder.open(name, range).await
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ObjectError> {
        if length > 1 {
            self.wait(offset).await; // a single byte shows that an image is there, when it is offered
        }
        self.folder.read(name, offset, length).await
    }

    async fn remove(&self, name: &str) -> Result<(), ObjectError> {
        self.folder.remove(name).await
    }

    async fn recorded(&self, name: &str) -> Result<(), ObjectError> {
        self.folder.recorded(name).await
    }

    async fn unrecorded(&self) -> Result<Vec<String>, ObjectError> {
        self.folder.unrecorded().await
    }

    async fn ping(&self) -> Result<(), ObjectError> {
        self.folder.ping().await
    }
}
