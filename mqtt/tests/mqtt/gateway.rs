//! The gateway with real sockets, before a real engine and database.

mod connect;
mod defects;
mod fights;
mod floods;
mod messages;
mod offences;
mod reports;
mod sessions;
mod strangers;
mod tls;

use device_ota_mqtt::codec::Version;

use crate::service::Client;
use crate::wire;

fn heartbeat(version: Version, pid: u16, id: &str, running: &str) -> Vec<u8> {
    let payload = format!(r#"{{"version":"{running}"}}"#);
    wire::publish(
        version,
        pid,
        &format!("ota/v1/{id}/up/heartbeat"),
        payload.as_bytes(),
    )
}

/// The device says something, and is heard.
async fn is_served(device: &mut Client, version: Version, id: &str) {
    device.send(&heartbeat(version, 77, id, "1.0.0")).await;
    assert_eq!(device.next().await, Some(wire::puback(77)));
}
