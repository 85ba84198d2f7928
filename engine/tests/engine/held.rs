//! An object store that stops each upload between its object and its row, until the test lets it go on.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectStream, ObjectWriter, Objects};
use device_ota_objects::LocalFolder;
use tokio::sync::{Mutex, mpsc, oneshot};

type Stops = mpsc::UnboundedSender<Stopped>;

/// The store, once its folder is known.
pub(crate) struct HeldObjects(Stops);

/// Where uploads stop.
pub(crate) struct Held(Mutex<mpsc::UnboundedReceiver<Stopped>>);

/// An upload whose object is there.
pub(crate) struct Stopped(oneshot::Sender<()>);

impl Stopped {
    pub(crate) fn go_on(self) {
        self.0.send(()).ok();
    }
}

impl Held {
    /// The next upload whose object is there.
    pub(crate) async fn committed(&self) -> Stopped {
        self.0.lock().await.recv().await.unwrap()
    }
}

impl HeldObjects {
    pub(crate) fn new() -> (Self, Held) {
        let (stops, stopped) = mpsc::unbounded_channel();
        (Self(stops), Held(Mutex::new(stopped)))
    }

    pub(crate) fn over(self, folder: &Path) -> Arc<dyn Objects> {
        Arc::new(Store {
            folder: LocalFolder::open(folder).unwrap(),
            stops: self.0,
        })
    }
}

struct Store {
    folder: LocalFolder,
    stops: Stops,
}

struct Writer {
    file: Box<dyn ObjectWriter>,
    stops: Stops,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        self.file.write(bytes).await
    }

    async fn commit(self: Box<Self>, name: &str) -> Result<(), ObjectError> {
        self.file.commit(name).await?;
        let (go_on, told) = oneshot::channel();
        self.stops.send(Stopped(go_on)).ok();
        told.await.ok();
        Ok(())
    }
}

#[async_trait]
impl Objects for Store {
    async fn create(&self) -> Result<Box<dyn ObjectWriter>, ObjectError> {
        Ok(Box::new(Writer {
            file: self.folder.create().await?,
            stops: self.stops.clone(),
        }))
    }

    async fn open(&self, name: &str, range: Range<u64>) -> Result<ObjectStream, ObjectError> {
        self.folder.open(name, range).await
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ObjectError> {
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
