//! Telemetry: what devices told, one by one and all together (rings-and-heartbeat service, *Device Heartbeat*).

use std::collections::BTreeMap;
use std::sync::Arc;

use device_ota_domain::{DeviceId, Role};
use device_ota_engine::ports::telemetry::HeartbeatRow;
use device_ota_engine::{FleetStatus, ports};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::devices::filter::{FleetQuery, filter_of};
use crate::dto::heartbeat::{SentHeartbeat, Telemetry};
use crate::dto::{self, HeartbeatList, List, PageQuery};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::{json_bytes, parse};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// A battery is low below so many percent, unless the caller says otherwise.
const LOW_BATTERY_PERCENT: u32 = 20;

/// Most bytes of a heartbeat: as over MQTT.
const MAX_HEARTBEAT_BYTES: usize = 16 * 1024;

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(take, history, status))]
pub(crate) struct Documented;

/// Routes below `/api/v1`.
pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let history = warp::get()
        .and(warp::path!("heartbeat" / Segment))
        .and(call.clone())
        .then(history);
    let take = warp::post()
        .and(warp::path!("heartbeat"))
        .and(call.clone())
        .and(body())
        .then(take);
    let status = warp::get()
        .and(warp::path!("devices" / "status"))
        .and(call)
        .then(status);
    take.or(history)
        .unify()
        .or(status)
        .unify()
        .map(reply)
        .boxed()
}

/// Whose heartbeat it is, which only this way has to say.
#[derive(Deserialize)]
struct SentBy {
    device_id: DeviceId,
}

/// A heartbeat that is in the database.
#[derive(Serialize, ToSchema)]
#[schema(as = HeartbeatReceived)]
struct ReceivedDto<'a> {
    device_id: &'a DeviceId,
    received_at: Timestamp,
}

/// Send a heartbeat
///
/// For a device without MQTT, signed in with its own id and secret, for itself alone. It goes the way of all heartbeats, and
/// is answered once it is in the database.
#[utoipa::path(post, path = "/api/v1/heartbeat", tag = "telemetry", request_body = SentHeartbeat, responses(
    (status = 200, description = "It is in the database", body = ReceivedDto),
), security(("device" = [])))]
async fn take(call: Call, body: Body) -> Answer {
    let Some(device) = call.device() else {
        let detail = "only a device may send its heartbeat, with its own id and secret";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail));
    };
    call.no_query()?;
    let bytes = json_bytes(MAX_HEARTBEAT_BYTES, &call.headers, body).await?;
    let sent: SentBy = parse(&bytes, "the body")?;
    // The engine reads it once more; this names the field that is wrong.
    parse::<Telemetry>(&bytes, "the body")?;
    if sent.device_id != device.id {
        let detail = "the body: device_id is not the device that signed in";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let received_at = call
        .shared
        .engine
        .take_heartbeat(device.clone(), &bytes)
        .await?;
    Ok(dto::ok(&ReceivedDto {
        device_id: &device.id,
        received_at,
    }))
}

/// Heartbeats of one device, newest first
///
/// Up to the last that was acknowledged, and no further back than they are kept.
#[utoipa::path(get, path = "/api/v1/heartbeat/{device_id}", tag = "telemetry", params(
    PageQuery,
    ("from" = Option<Timestamp>, Query, description = "Received at this time or later"),
    ("to" = Option<Timestamp>, Query, description = "Received before this time"),
), responses(
    (status = 200, description = "A page of them", body = HeartbeatList),
))]
async fn history(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: DeviceId = id.id("device")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let (from, to) = (query.time("from")?, query.time("to")?);
    let filters = query.done()?;
    let rows = call.shared.engine.heartbeats(&id, from, to, page).await?;
    Ok(dto::ok(&List {
        plural: "heartbeats",
        items: rows.iter().map(heartbeat).collect(),
        page,
        filters,
    }))
}

/// A heartbeat as it was sent, and when it came.
fn heartbeat(row: &HeartbeatRow) -> Map<String, Value> {
    // What ingest took was an object.
    let mut sent: Map<String, Value> = serde_json::from_str(&row.payload).unwrap_or_default();
    sent.insert("received_at".to_owned(), row.received_at.to_string().into());
    sent
}

/// The fleet at a glance.
#[derive(Serialize, ToSchema)]
#[schema(as = FleetStatus)]
struct StatusDto<'a> {
    total_devices: u64,
    online: u64,
    offline: u64,
    never_seen: u64,
    low_battery: u64,
    low_battery_percent: u32,
    with_errors: u64,
    by_version: &'a BTreeMap<String, u64>,
    by_ring: &'a BTreeMap<String, u64>,
    by_model: &'a BTreeMap<String, u64>,
    #[schema(value_type = Object)]
    filters: Map<String, Value>,
}

impl<'a> StatusDto<'a> {
    fn of(status: &'a FleetStatus, low_battery_percent: u32, filters: Map<String, Value>) -> Self {
        Self {
            total_devices: status.total,
            online: status.online,
            offline: status.total - status.online,
            never_seen: status.never_seen,
            low_battery: status.low_battery,
            low_battery_percent,
            with_errors: status.with_errors,
            by_version: &status.by_version,
            by_ring: &status.by_ring,
            by_model: &status.by_model,
            filters,
        }
    }
}

/// The fleet at a glance
///
/// Unpinned devices have no ring of their own: each campaign turns the wheel for them anew.
#[utoipa::path(get, path = "/api/v1/devices/status", tag = "telemetry", params(
    FleetQuery,
    ("low_battery_percent" = Option<u32>, Query, minimum = 0, maximum = 100,
        description = "A battery is low below this; default 20"),
), responses(
    (status = 200, description = "How many there are of each kind", body = StatusDto),
))]
async fn status(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let filter: ports::telemetry::DeviceFilter = filter_of(&mut query)?;
    let low = query
        .percent("low_battery_percent")?
        .unwrap_or(LOW_BATTERY_PERCENT);
    let filters = query.done()?;
    let status = call.shared.engine.fleet_status(&filter, low.into()).await?;
    Ok(dto::ok(&StatusDto::of(&status, low, filters)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::DeviceKey;

    use super::*;

    #[test]
    fn a_heartbeat_is_shown_as_it_was_sent_and_with_when_it_came() {
        let row = |payload: &str| HeartbeatRow {
            device: DeviceKey(1),
            received_at: "2025-12-18T10:00:00Z".parse().unwrap(),
            payload: payload.into(),
        };
        let shown = |payload| serde_json::to_string(&heartbeat(&row(payload))).unwrap();
        insta::assert_snapshot!(shown(r#"{"version":"2","of_my_own":[1.5]}"#), @r#"{"of_my_own":[1.5],"received_at":"2025-12-18T10:00:00Z","version":"2"}"#);
        insta::assert_snapshot!(shown("7"), @r#"{"received_at":"2025-12-18T10:00:00Z"}"#);
    }

    #[test]
    fn the_overview_has_every_division() {
        let status = FleetStatus {
            total: 5,
            online: 3,
            never_seen: 1,
            low_battery: 2,
            with_errors: 1,
            by_version: [("1.0.0".to_owned(), 5)].into(),
            by_ring: [("canary".to_owned(), 1), ("unpinned".to_owned(), 4)].into(),
            by_model: [("SF-100".to_owned(), 5)].into(),
        };
        let body = StatusDto::of(&status, 20, Map::new());
        insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap(), @r#"
        {
          "total_devices": 5,
          "online": 3,
          "offline": 2,
          "never_seen": 1,
          "low_battery": 2,
          "low_battery_percent": 20,
          "with_errors": 1,
          "by_version": {
            "1.0.0": 5
          },
          "by_ring": {
            "canary": 1,
            "unpinned": 4
          },
          "by_model": {
            "SF-100": 5
          },
          "filters": {}
        }
        "#);
    }
}
