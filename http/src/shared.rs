//! What handlers share, and the forms in which they answer.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use device_ota_domain::FirmwareId;
use device_ota_engine::{Engine, Error, Webhooks};
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use warp::Reply;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::Api;
use crate::access::Access;
use crate::dto::firmware::FirmwareRef;
use crate::errors::ApiError;
use crate::seats::Seats;

/// A part of the service beside the engine, such as the device gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name in the answer, e.g. `mqtt_gateway`.
    pub name: &'static str,
    /// It does its work.
    pub healthy: bool,
    /// The service cannot do without it: when it is down, so is the service.
    pub essential: bool,
    /// For people: what is wrong, or a number worth knowing.
    pub detail: Option<String>,
    /// Where it really listens, if it does.
    pub address: Option<SocketAddr>,
}

/// Most images whose unchanging facts are kept for updates that name them, some 500 bytes each.
const MAX_KNOWN_FIRMWARE: usize = 1_024;

/// What a handler answers.
pub(crate) type Answer = Result<Response, ApiError>;
/// A resource's routes.
pub(crate) type Routes = BoxedFilter<(Response,)>;

/// What handlers share.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) version: &'static str,
    pub(crate) listening: SocketAddr,
    pub(crate) components: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
    pub(crate) seats: Seats,
    /// For answers that last: whoever gets one is looked at again now and then.
    pub(crate) access: Access,
    /// Ends them with the service.
    pub(crate) shutdown: CancellationToken,
    known_firmware: Mutex<HashMap<FirmwareId, Arc<FirmwareRef>>>,
}

impl Shared {
    pub(crate) fn new(api: &Api, listening: SocketAddr, shutdown: CancellationToken) -> Self {
        Self {
            engine: Arc::clone(&api.engine),
            webhooks: Arc::clone(&api.webhooks),
            version: api.version,
            listening,
            components: Arc::clone(&api.components),
            seats: api.seats.clone(),
            access: api.access.clone(),
            shutdown,
            known_firmware: Mutex::default(),
        }
    }

    /// The unchanging facts of an image, from memory when it was seen before; `None` when it is gone.
    pub(crate) async fn firmware_ref(
        &self,
        id: &FirmwareId,
    ) -> Result<Option<Arc<FirmwareRef>>, Error> {
        let known = self
            .known_firmware
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        if known.is_some() {
            return Ok(known);
        }
        let found = match self.engine.firmware(id).await {
            Ok(firmware) => Arc::new(FirmwareRef::of(&firmware)),
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut known = self
            .known_firmware
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN_FIRMWARE {
            known.clear();
        }
        known.insert(id.clone(), Arc::clone(&found));
        Ok(Some(found))
    }
}

/// Makes the answer of a handler out of what it returned.
pub(crate) fn reply(answer: Answer) -> Response {
    answer.unwrap_or_else(Reply::into_response)
}

/// 200 with a body that comes piece by piece.
pub(crate) fn streamed<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Response
where
    E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static,
{
    warp::reply::stream(Bytewise(Mutex::new(Box::pin(pieces)))).into_response()
}

/// A stream as warp wants it: shareable between threads, though only one ever polls it.
struct Bytewise<S>(Mutex<Pin<Box<S>>>);

impl<S: Stream> Stream for Bytewise<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let stream = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        stream.as_mut().poll_next(context)
    }
}
