//! All routes in one filter. Which there are, [`crate::openapi`] says.

use std::sync::Arc;

use warp::Filter as _;

use crate::errors::recover;
use crate::shared::{Routes, Shared};
use crate::{
    advance, audit, campaigns, devices, downloads, events, firmware, health, keys, metrics,
    openapi, permits, proposals, rings, rollbacks, statistics, telemetry, trust, updates, webhooks,
};

/// All routes, the most frequent ones first.
pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let resources = updates::routes(shared)
        .or(downloads::routes(shared))
        .unify()
        .or(devices::routes(shared))
        .unify()
        .or(campaigns::routes(shared))
        .unify()
        .or(proposals::routes(shared))
        .unify()
        .or(advance::routes(shared))
        .unify()
        .or(firmware::routes(shared))
        .unify()
        .or(rollbacks::routes(shared))
        .unify()
        .or(permits::routes(shared))
        .unify()
        .or(statistics::routes(shared))
        .unify()
        .or(keys::routes(shared))
        .unify()
        .or(audit::routes(shared))
        .unify()
        .or(trust::routes(shared))
        .unify()
        .or(events::routes(shared))
        .unify()
        .or(webhooks::routes(shared))
        .unify()
        .boxed();
    let api = warp::path!("api" / "v1" / "ota" / ..).and(resources);
    let rings = telemetry::routes(shared)
        .or(firmware::routes(shared))
        .unify()
        .or(rings::routes(shared))
        .unify();
    let rings = warp::path!("api" / "v1" / ..).and(rings);
    api.or(rings)
        .unify()
        .or(health::routes(shared))
        .unify()
        .or(metrics::routes(shared))
        .unify()
        .or(openapi::routes(shared))
        .unify()
        .recover(recover)
        .unify()
        .boxed()
}

#[cfg(test)]
mod tests;
