//! Why sessions end, and what is said about it.

use crate::codec::{CodecError, DisconnectReasonCode};

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The connection is gone.
    Gone,
    /// The device said good-bye.
    Disconnected,
    /// Bytes that are no packet.
    Malformed,
    /// A topic alias, of which CONNACK has offered none.
    TopicAlias,
    /// A packet that may not be sent.
    Unexpected,
    /// A packet beyond [`MAX_PACKET`](crate::limits::MAX_PACKET).
    TooLarge,
    /// QoS 2.
    Qos2,
    /// A message to be retained (5; in 3.1.1 the flag is ignored).
    Retained,
    /// A subscription identifier.
    SubscriptionId,
    /// A message outside the device's own `up/` (3.1.1; in 5 the message is refused).
    NotAuthorized,
    /// Silent for 1.5 times its keep-alive.
    KeepAlive,
    /// It does not read what is sent.
    Stalled,
    /// The same device has connected again.
    TakenOver,
    /// Its credentials have changed.
    Administrative,
    /// The service stops.
    ShuttingDown,
}

impl End {
    /// A short stable label, fit for a counter.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Disconnected => "disconnected",
            Self::Malformed => "malformed",
            Self::TopicAlias => "topic_alias",
            Self::Unexpected => "unexpected",
            Self::TooLarge => "too_large",
            Self::Qos2 => "qos2",
            Self::Retained => "retained",
            Self::SubscriptionId => "subscription_id",
            Self::NotAuthorized => "not_authorized",
            Self::KeepAlive => "keep_alive",
            Self::Stalled => "stalled",
            Self::TakenOver => "taken_over",
            Self::Administrative => "administrative",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// What a device of version 5 is told; `None` when there is nobody to tell.
    pub const fn reason(self) -> Option<DisconnectReasonCode> {
        Some(match self {
            Self::Gone | Self::Disconnected | Self::Stalled => return None,
            Self::Malformed => DisconnectReasonCode::MalformedPacket,
            Self::TopicAlias => DisconnectReasonCode::TopicAliasInvalid,
            Self::Unexpected => DisconnectReasonCode::ProtocolError,
            Self::TooLarge => DisconnectReasonCode::PacketTooLarge,
            Self::Qos2 => DisconnectReasonCode::QoSNotSupported,
            Self::Retained => DisconnectReasonCode::RetainNotSupported,
            Self::SubscriptionId => DisconnectReasonCode::SubscriptionIdentifiersNotSupported,
            Self::NotAuthorized => DisconnectReasonCode::NotAuthorized,
            Self::KeepAlive => DisconnectReasonCode::KeepAliveTimeout,
            Self::TakenOver => DisconnectReasonCode::SessionTakenOver,
            Self::Administrative => DisconnectReasonCode::AdministrativeAction,
            Self::ShuttingDown => DisconnectReasonCode::ServerShuttingDown,
        })
    }

    /// Whether the device broke a rule: these ends are counted and logged.
    pub const fn is_offence(self) -> bool {
        !matches!(
            self,
            Self::Gone
                | Self::Disconnected
                | Self::TakenOver
                | Self::Administrative
                | Self::ShuttingDown
        )
    }
}

impl From<CodecError> for End {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Malformed => Self::Malformed,
            CodecError::TopicAlias => Self::TopicAlias,
            CodecError::TooLarge(_) => Self::TooLarge,
            CodecError::Unexpected | CodecError::UnknownVersion(_) => Self::Unexpected,
        }
    }
}
