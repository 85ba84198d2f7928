//! All routes in one filter, and what they share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use device_ota_domain::FirmwareId;
use device_ota_engine::{Engine, Error};
use warp::Filter as _;
use warp::Reply;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::dto::firmware::FirmwareRef;
use crate::errors::{ApiError, recover};
use crate::health::Component;
use crate::{campaigns, devices, downloads, firmware, health, rollbacks, trust, updates};

/// Every path and the methods it takes, for the `Allow` of a 405; `*` is one level. The tests hold it to the filters.
pub(crate) const METHODS: &[(&str, &str)] = &[
    ("/api/v1/ota/firmware", "GET, HEAD, POST"),
    ("/api/v1/ota/firmware/*", "GET, HEAD"),
    ("/api/v1/ota/firmware/*/download", "GET, HEAD"),
    ("/api/v1/ota/objects/*", "GET, HEAD"),
    ("/api/v1/ota/devices", "GET, HEAD, POST"),
    ("/api/v1/ota/devices/bulk/update", "POST"),
    ("/api/v1/ota/devices/*", "GET, HEAD"),
    ("/api/v1/ota/devices/*/credentials", "POST"),
    ("/api/v1/ota/devices/*/update", "POST"),
    ("/api/v1/ota/devices/*/rollback", "POST"),
    ("/api/v1/ota/devices/*/updates", "GET, HEAD"),
    ("/api/v1/ota/campaigns", "GET, HEAD, POST"),
    ("/api/v1/ota/campaigns/*", "GET, HEAD"),
    ("/api/v1/ota/campaigns/*/start", "POST"),
    ("/api/v1/ota/campaigns/*/pause", "POST"),
    ("/api/v1/ota/campaigns/*/resume", "POST"),
    ("/api/v1/ota/campaigns/*/cancel", "POST"),
    ("/api/v1/ota/campaigns/*/rollback", "POST"),
    ("/api/v1/ota/campaigns/*/devices", "GET, HEAD"),
    ("/api/v1/ota/campaigns/*/rollbacks", "GET, HEAD"),
    ("/api/v1/ota/updates", "GET, HEAD"),
    ("/api/v1/ota/updates/*", "GET, HEAD"),
    ("/api/v1/ota/updates/*/cancel", "POST"),
    ("/api/v1/ota/updates/*/retry", "POST"),
    ("/api/v1/ota/rollbacks", "GET, HEAD"),
    ("/api/v1/ota/trust/root", "GET, HEAD"),
    ("/api/v1/ota/trust/roots/*", "GET, HEAD"),
    ("/health", "GET, HEAD"),
    ("/health/ready", "GET, HEAD"),
    ("/health/live", "GET, HEAD"),
    ("/health/detailed", "GET, HEAD"),
];

/// Most images whose unchanging facts are kept for updates that name them, some 500 bytes each.
const MAX_KNOWN_FIRMWARE: usize = 1_024;

/// What a handler answers.
pub(crate) type Answer = Result<Response, ApiError>;
/// A resource's routes.
pub(crate) type Routes = BoxedFilter<(Response,)>;

/// What handlers share.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) version: &'static str,
    pub(crate) listening: SocketAddr,
    pub(crate) components: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
    known_firmware: Mutex<HashMap<FirmwareId, Arc<FirmwareRef>>>,
}

impl Shared {
    pub(crate) fn new(
        engine: Arc<Engine>,
        version: &'static str,
        listening: SocketAddr,
        components: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
    ) -> Self {
        Self {
            engine,
            version,
            listening,
            components,
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

/// All routes; whatever none of them takes is 404 or 405. The most frequent ones come first.
pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let resources = updates::routes(shared)
        .or(downloads::routes(shared))
        .unify()
        .or(devices::routes(shared))
        .unify()
        .or(campaigns::routes(shared))
        .unify()
        .or(firmware::routes(shared))
        .unify()
        .or(rollbacks::routes(shared))
        .unify()
        .or(trust::routes(shared))
        .unify()
        .boxed();
    let api = warp::path!("api" / "v1" / "ota" / ..).and(resources);
    api.or(health::routes(shared))
        .unify()
        .recover(recover)
        .unify()
        .boxed()
}

/// Makes the answer of a handler out of what it returned.
pub(crate) fn reply(answer: Answer) -> Response {
    answer.unwrap_or_else(Reply::into_response)
}

/// The methods of a path, if it is one of ours.
pub(crate) fn methods_of(path: &str) -> Option<&'static str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let fits = |pattern: &str| {
        let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(level), Some(given)) if level == given => {}
                _ => return false,
            }
        }
    };
    METHODS
        .iter()
        .find(|(pattern, _)| fits(pattern))
        .map(|(_, methods)| *methods)
}

#[cfg(test)]
mod tests;
