//! What a device is subscribed to, below its own `down/`.

use device_ota_protocol::topics::{Down, filter_matches};

use crate::codec::QoS;
use crate::limits::MAX_FILTERS;

/// Which kinds of messages a device takes, as bits; a filter for some chunks counts as one for chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subscribed(pub u8);

impl Subscribed {
    const OFFER: u8 = 1;
    const COMMAND: u8 = 2;
    const REPLY: u8 = 4;
    const CHUNK: u8 = 8;

    /// Whether messages of this kind are taken.
    pub const fn takes(self, to: &Down) -> bool {
        let bit = match to {
            Down::Offer => Self::OFFER,
            Down::Command => Self::COMMAND,
            Down::Reply => Self::REPLY,
            Down::Chunk { .. } => Self::CHUNK,
        };
        self.0 & bit != 0
    }
}

/// The filters of one device, without what they all begin with.
#[derive(Debug, Default)]
pub struct Filters {
    tails: Vec<(Box<str>, QoS)>,
    changes: u16,
}

impl Filters {
    /// Adds a filter or changes its QoS. False when there are too many.
    pub fn insert(&mut self, tail: &str, qos: QoS) -> bool {
        self.changes = self.changes.wrapping_add(1);
        if let Some(known) = self
            .tails
            .iter_mut()
            .find(|(filter, _)| filter.as_ref() == tail)
        {
            known.1 = qos;
        } else if self.tails.len() < MAX_FILTERS {
            self.tails.push((tail.into(), qos));
        } else {
            return false;
        }
        true
    }

    /// Removes a filter; false when there was none such.
    pub fn remove(&mut self, tail: &str) -> bool {
        self.changes = self.changes.wrapping_add(1);
        let before = self.tails.len();
        self.tails.retain(|(filter, _)| filter.as_ref() != tail);
        self.tails.len() < before
    }

    /// The QoS with which the device takes this message, if it does.
    pub fn granted(&self, to: &Down) -> Option<QoS> {
        let topic = to.to_string();
        let matching = self
            .tails
            .iter()
            .filter(|(filter, _)| filter_matches(filter, &topic));
        matching.map(|(_, qos)| *qos).max()
    }

    /// Changes with every change.
    pub const fn changes(&self) -> u16 {
        self.changes
    }

    /// All of it in one word.
    pub fn subscribed(&self) -> Subscribed {
        let bits = self.tails.iter().map(|(filter, _)| {
            let takes = |down: &str, bit: u8| if filter_matches(filter, down) { bit } else { 0 };
            takes("offer", Subscribed::OFFER)
                | takes("command", Subscribed::COMMAND)
                | takes("reply", Subscribed::REPLY)
                | if may_match_chunks(filter) {
                    Subscribed::CHUNK
                } else {
                    0
                }
        });
        Subscribed(bits.fold(0, |all, bits| all | bits))
    }
}

/// Whether any topic `chunk/{request}/{offset}` lies in the filter.
fn may_match_chunks(filter: &str) -> bool {
    let mut levels = filter.split('/');
    for word in [Some("chunk"), None, None] {
        match (levels.next(), word) {
            (Some("#"), _) => return true,
            (Some("+"), _) => {}
            (Some(level), Some(word)) if level == word => {}
            (Some(level), None) if level.bytes().all(|b| b.is_ascii_digit()) => {}
            _ => return false,
        }
    }
    matches!(levels.next(), None | Some("#"))
}
