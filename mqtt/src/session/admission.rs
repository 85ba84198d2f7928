//! Whether a CONNECT is one that we take, before it is known whether there is such a device.

use std::time::Duration;

use device_ota_protocol::ids::DeviceId;
use device_ota_protocol::topics::{Prefix, Up};

use crate::codec::{Connect, Offered, QoS, Refusal, Version, Will};
use crate::limits::{Limits, MAX_INFLIGHT_DOWN, MAX_PACKET, MAX_RECEIVE, MIN_CLIENT_PACKET};

/// What was agreed with a device that may come in if it is who it says it is.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Which MQTT it speaks.
    pub version: Version,
    /// Who it says it is.
    pub id: DeviceId,
    /// How long it may be silent.
    pub silence: Duration,
    /// What it is told.
    pub offered: Offered,
    /// QoS 1 messages that may be on the way to it.
    pub window: u16,
    /// Largest packet that it takes, bytes.
    pub max_packet: u32,
}

/// Judges a CONNECT by everything but its secret.
///
/// Client id, user name and device id are one and the same. A certificate that was proved in the handshake has told the id
/// already (`certified`): then a secret is not looked at, and a user name need not be said. The will's payload is of no interest: whatever it says, the
/// end of the session is told to the engine. A kept session (3.1.1: clean session 0; 5: session expiry) is answered with
/// "no session present" each time: what a device should get is known from the database.
pub fn admit(
    connect: &Connect,
    certified: Option<&DeviceId>,
    prefix: &Prefix,
    limits: &Limits,
) -> Result<Admission, Refusal> {
    if connect.enhanced_authentication {
        return Err(Refusal::AuthenticationMethod);
    }
    if connect
        .max_packet
        .is_some_and(|max| max < MIN_CLIENT_PACKET)
    {
        return Err(Refusal::MaxPacket);
    }
    let user = connect.user.as_deref();
    let id = match certified {
        Some(id) if user.is_some_and(|user| user != id.as_str()) => {
            return Err(Refusal::BadCredentials);
        }
        Some(id) => id.clone(),
        None if connect.password.is_none() => return Err(Refusal::BadCredentials),
        None => user
            .and_then(|user| user.parse().ok())
            .ok_or(Refusal::BadCredentials)?,
    };
    if connect.client_id.as_ref() != id.as_str() {
        return Err(Refusal::ClientId);
    }
    if let Some(will) = &connect.will {
        judge_will(will, connect.version, &prefix.up(&id, Up::Status))?;
    }
    let keep_alive = agreed_keep_alive(connect, limits.max_keep_alive.max(1));
    Ok(Admission {
        version: connect.version,
        id,
        silence: Duration::from_secs(keep_alive.into()) * 3 / 2,
        offered: Offered {
            receive_maximum: limits.receive_maximum.clamp(1, MAX_RECEIVE),
            max_packet: u32::try_from(MAX_PACKET).unwrap_or(u32::MAX),
            keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
        },
        window: connect
            .receive_maximum
            .unwrap_or(MAX_INFLIGHT_DOWN)
            .min(MAX_INFLIGHT_DOWN),
        max_packet: connect.max_packet.unwrap_or(u32::MAX),
    })
}

fn judge_will(will: &Will, version: Version, status: &str) -> Result<(), Refusal> {
    if &*will.topic != status {
        Err(Refusal::WillNotAuthorized)
    } else if will.qos == QoS::Level2 {
        Err(Refusal::WillQos)
    } else if will.retain && version == Version::V5 {
        Err(Refusal::WillRetained)
    } else {
        Ok(())
    }
}

/// Seconds. A client of 3.1.1 cannot be told another value, so its own stands, unless it is "never".
fn agreed_keep_alive(connect: &Connect, max: u16) -> u16 {
    match (connect.keep_alive, connect.version) {
        (0, _) => max,
        (asked, Version::V3) => asked,
        (asked, Version::V5) => asked.min(max),
    }
}
