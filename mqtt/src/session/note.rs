//! What is refused while a session goes on.

/// Something refused while the session goes on: to be counted, and logged the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// What was refused.
    pub kind: NoteKind,
    /// Nothing of this kind was noted before in this session.
    pub first: bool,
}

/// What was refused while the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// A report that is not valid; the reason.
    Invalid(&'static str),
    /// A message outside the device's own `up/`.
    PublishRefused,
    /// A filter outside its own `down/`, or too many.
    SubscribeRefused,
    /// More heartbeats or checks than allowed.
    OverRate,
    /// A retain flag that was ignored.
    RetainIgnored,
    /// A message to the device, larger than the device takes.
    DownTooLarge,
}

impl NoteKind {
    /// A short stable label, fit for a counter.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Invalid(reason) => reason,
            Self::PublishRefused => "publish_refused",
            Self::SubscribeRefused => "subscribe_refused",
            Self::OverRate => "over_rate",
            Self::RetainIgnored => "retain_ignored",
            Self::DownTooLarge => "down_too_large",
        }
    }

    pub(super) const fn bit(self) -> u8 {
        match self {
            Self::Invalid(_) => 1,
            Self::PublishRefused => 2,
            Self::SubscribeRefused => 4,
            Self::OverRate => 8,
            Self::RetainIgnored => 16,
            Self::DownTooLarge => 32,
        }
    }
}
