//! The fleet at a glance: one pass over the devices and their latest states, never over the history.

use device_ota_engine::ports::telemetry::DeviceFilter;
use device_ota_engine::ports::telemetry::FleetGroup;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::lists::ask_devices;
use crate::sql::{self, Args, statements};

statements! {
    FLEET = "SELECT COALESCE(l.version, d.firmware_version) AS version, d.device_model, d.ring, l.online, \
         COUNT(*) AS devices, \
         CAST(SUM(CASE WHEN l.battery_percent < $1 THEN 1 ELSE 0 END) AS BIGINT) AS low_battery, \
         CAST(SUM(CASE WHEN l.error_count > 0 THEN 1 ELSE 0 END) AS BIGINT) AS with_errors, \
         CAST(SUM(CASE WHEN l.last_seen IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS never_seen \
         FROM devices d JOIN device_latest l ON l.device_key = d.device_key WHERE {given} \
         GROUP BY COALESCE(l.version, d.firmware_version), d.device_model, d.ring, l.online";
}

/// Counts devices by what they have in common.
pub(crate) async fn fleet<D: Dialect>(
    conn: &mut D::Connection,
    filter: &DeviceFilter,
    low_battery: f64,
) -> Result<Vec<FleetGroup>, DbError> {
    let asked = ask_devices::<D>(Args::new().real(low_battery), 1, filter);
    let (condition, args) = asked.finish();
    sql::fetch_given(conn, &FLEET, &condition, args, |row| {
        Ok(FleetGroup {
            version: row.string_opt("version")?,
            device_model: row.string("device_model")?,
            ring: row.string_opt("ring")?,
            online: row.flag("online")?,
            devices: row.uint("devices")?,
            low_battery: row.uint("low_battery")?,
            with_errors: row.uint("with_errors")?,
            never_seen: row.uint("never_seen")?,
        })
    })
    .await
}
