//! A heartbeat as it is read back.

use jiff::Timestamp;
use utoipa::ToSchema;

/// Every heartbeat is as the device sent it, with all of its fields, and when it came.
#[derive(ToSchema)]
#[schema(as = Heartbeat)]
#[expect(dead_code, reason = "describes what `heartbeat` answers")]
pub(crate) struct HeartbeatDto {
    version: String,
    received_at: Timestamp,
}
