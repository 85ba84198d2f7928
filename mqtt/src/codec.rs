//! Bytes to packets and back, for the server's end of MQTT 3.1.1 and 5.
//!
//! The wire format is `mqtt-proto`'s; around it stand a bounded frame reader, the checks that the library leaves to its
//! user, and one packet type for both versions, so that nothing above depends on the library or on the version.
//! Nothing here panics on any bytes, and nothing of a packet's body is kept before its length is known to be allowed.

mod check;
mod read;
mod write;

use bytes::Bytes;
use mqtt_proto::{v3, v5};

pub use mqtt_proto::v5::DisconnectReasonCode;
pub use mqtt_proto::{Pid, QoS, QosPid, TopicFilter, TopicName};
pub use read::{asked_version, read_connect, read_packet};
pub use write::{
    Granted, Offered, connack, disconnect, pingresp, puback, publish, refuse, suback, unsuback,
};

/// Which MQTT a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V3,
    /// MQTT 5.
    V5,
}

/// Why bytes are no packet that we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They break the standard.
    #[error("malformed packet")]
    Malformed,
    /// A packet that a client may not send, or not now.
    #[error("unexpected packet")]
    Unexpected,
    /// A topic alias, of which we take none.
    #[error("topic alias")]
    TopicAlias,
    /// Longer than allowed; known from its header.
    #[error("packet of {0} bytes is too large")]
    TooLarge(usize),
    /// A CONNECT of a version that we do not speak.
    #[error("protocol level {0} is not spoken here")]
    UnknownVersion(u8),
}

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Which MQTT it asks for.
    pub version: Version,
    /// Client identifier, as sent.
    pub client_id: Box<str>,
    /// User name.
    pub user: Option<Box<str>>,
    /// Password; any bytes.
    pub password: Option<Bytes>,
    /// Seconds; 0: never.
    pub keep_alive: u16,
    /// The last will; its payload is not kept, see [`crate::session::admit`].
    pub will: Option<Will>,
    /// QoS 1 messages it takes without acknowledging (5 only).
    pub receive_maximum: Option<u16>,
    /// Largest packet that it takes, bytes (5 only).
    pub max_packet: Option<u32>,
    /// It asks for an authentication method (5 only).
    pub enhanced_authentication: bool,
}

/// What of a last will matters to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it goes.
    pub topic: TopicName,
    /// How.
    pub qos: QoS,
    /// Whether it asks to be retained.
    pub retain: bool,
}

/// Every later packet that a client may send, of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A message.
    Publish(Publish),
    /// It has our message of this packet id.
    Puback(Pid),
    /// A step of QoS 2, which we never agree to.
    Qos2Step,
    /// It wants messages.
    Subscribe {
        /// To be named in the answer.
        pid: Pid,
        /// Filters, each with the highest QoS wanted.
        filters: Vec<(TopicFilter, QoS)>,
        /// It carries a subscription identifier (5 only).
        identified: bool,
    },
    /// It no longer wants them.
    Unsubscribe {
        /// To be named in the answer.
        pid: Pid,
        /// Filters.
        filters: Vec<TopicFilter>,
    },
    /// Are you there?
    Pingreq,
    /// Good-bye.
    Disconnect,
}

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to.
    pub topic: TopicName,
    /// How, and its packet id.
    pub qos: QosPid,
    /// Whether it asks to be retained.
    pub retain: bool,
    /// What it says; an allocation of its own.
    pub payload: Bytes,
}

/// Why a connection is refused: one reason, its code in either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No user name, unknown user, or wrong password.
    BadCredentials,
    /// Its certificate names no device.
    Certificate,
    /// The will is not the device's own status.
    WillNotAuthorized,
    /// The will asks for QoS 2.
    WillQos,
    /// The will asks to be retained (5; in 3.1.1 the flag is ignored).
    WillRetained,
    /// The client id is not the user name.
    ClientId,
    /// The database does not answer.
    Unavailable,
    /// As many connections as are allowed.
    TooManyConnections,
    /// The same device has connected too often of late.
    ConnectRate,
    /// It takes no packet of the size that it would be sent (5 only).
    MaxPacket,
    /// Authentication by a method: there is none.
    AuthenticationMethod,
    /// Some other version of MQTT.
    Version,
    /// Longer than a CONNECT may be.
    TooLarge,
}

impl Refusal {
    /// A short stable label, fit for a counter.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadCredentials => "bad_credentials",
            Self::Certificate => "bad_certificate_name",
            Self::WillNotAuthorized | Self::WillQos | Self::WillRetained => "bad_will",
            Self::ClientId => "bad_client_id",
            Self::Unavailable => "unavailable",
            Self::TooManyConnections => "too_many_connections",
            Self::ConnectRate => "connect_rate",
            Self::MaxPacket => "bad_max_packet",
            Self::AuthenticationMethod => "bad_method",
            Self::Version => "bad_version",
            Self::TooLarge => "connect_too_large",
        }
    }

    const fn v3(self) -> v3::ConnectReturnCode {
        match self {
            Self::Version => v3::ConnectReturnCode::UnacceptableProtocolVersion,
            Self::ClientId => v3::ConnectReturnCode::IdentifierRejected,
            Self::BadCredentials => v3::ConnectReturnCode::BadUserNameOrPassword,
            Self::Unavailable | Self::TooManyConnections | Self::ConnectRate => {
                v3::ConnectReturnCode::ServerUnavailable
            }
            Self::Certificate
            | Self::WillNotAuthorized
            | Self::WillQos
            | Self::WillRetained
            | Self::AuthenticationMethod
            | Self::MaxPacket
            | Self::TooLarge => v3::ConnectReturnCode::NotAuthorized,
        }
    }

    const fn v5(self) -> v5::ConnectReasonCode {
        match self {
            Self::BadCredentials => v5::ConnectReasonCode::BadUserNameOrPassword,
            Self::Certificate | Self::WillNotAuthorized => v5::ConnectReasonCode::NotAuthorized,
            Self::WillQos => v5::ConnectReasonCode::QoSNotSupported,
            Self::WillRetained => v5::ConnectReasonCode::RetainNotSupported,
            Self::ClientId => v5::ConnectReasonCode::ClientIdentifierNotValid,
            Self::Unavailable => v5::ConnectReasonCode::ServerUnavailable,
            Self::TooManyConnections => v5::ConnectReasonCode::QuotaExceeded,
            Self::ConnectRate => v5::ConnectReasonCode::ConnectionRateExceeded,
            Self::MaxPacket => v5::ConnectReasonCode::ImplementationSpecificError,
            Self::AuthenticationMethod => v5::ConnectReasonCode::BadAuthMethod,
            Self::Version => v5::ConnectReasonCode::UnsupportedProtocolVersion,
            Self::TooLarge => v5::ConnectReasonCode::PacketTooLarge,
        }
    }
}

/// How a message of QoS 1 is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Taken.
    Taken,
    /// Not the device's topic; 3.1.1 cannot say so.
    NotAuthorized,
    /// Too many a minute; 3.1.1 cannot say so, and hears that it was taken.
    QuotaExceeded,
}
