//! What the standard forbids and the library lets pass.

use mqtt_proto::{QosPid, v3, v5};

use super::CodecError;

/// Where the connect flags stand in the body of a CONNECT named `MQTT`.
const FLAGS_AT: usize = 7;
/// Bits of the flags: the will is retained; there is a will.
const WILL_RETAIN: u8 = 0x20;
const WILL: u8 = 0x04;

fn ensure(holds: bool) -> Result<(), CodecError> {
    if holds {
        Ok(())
    } else {
        Err(CodecError::Malformed)
    }
}

/// Flags that contradict each other.
pub(super) fn connect_flags(body: &[u8]) -> Result<(), CodecError> {
    let flags = body.get(FLAGS_AT).copied().unwrap_or_default();
    ensure(flags & (WILL_RETAIN | WILL) != WILL_RETAIN)
}

pub(super) fn connect_v3(connect: &v3::Connect) -> Result<(), CodecError> {
    ensure(connect.password.is_none() || connect.username.is_some())?;
    names(&connect.client_id, connect.username.as_deref())
}

pub(super) fn connect_v5(connect: &v5::Connect) -> Result<(), CodecError> {
    let properties = &connect.properties;
    ensure(properties.receive_max != Some(0) && properties.max_packet_size != Some(0))?;
    ensure(properties.auth_data.is_none() || properties.auth_method.is_some())?;
    names(&connect.client_id, connect.username.as_deref())
}

fn names(client_id: &str, user: Option<&str>) -> Result<(), CodecError> {
    ensure(!client_id.contains('\0') && !user.is_some_and(|user| user.contains('\0')))
}

pub(super) fn publish_v3(publish: &v3::Publish) -> Result<(), CodecError> {
    ensure(!publish.topic_name.is_empty())?;
    ensure(!(publish.dup && publish.qos_pid == QosPid::Level0))
}

/// We announce no topic aliases, so a topic is never empty and never an alias; and subscription identifiers are the
/// server's to send.
pub(super) fn publish_v5(publish: &v5::Publish) -> Result<(), CodecError> {
    if publish.properties.topic_alias.is_some() {
        return Err(CodecError::TopicAlias);
    }
    ensure(!publish.topic_name.is_empty())?;
    ensure(publish.properties.subscription_id.is_none())?;
    ensure(!(publish.dup && publish.qos_pid == QosPid::Level0))
}
