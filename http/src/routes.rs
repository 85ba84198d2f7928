//! All routes in one filter, and the methods that each path takes.

use std::sync::Arc;

use warp::Filter as _;

use crate::errors::recover;
use crate::shared::{Routes, Shared};
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
