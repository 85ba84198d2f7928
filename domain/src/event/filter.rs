//! What a receiver wants to hear of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{EventType, StoredEvent};
use crate::ids::{CampaignId, DeviceId};

/// An event type by name, or a whole family such as `campaign.*`.
///
/// ```
/// use device_ota_domain::event::EventSelector;
/// let family: EventSelector = "campaign.*".parse().unwrap();
/// assert!(family.matches("campaign.started") && !family.matches("update.failed"));
/// assert!("campaign.begun".parse::<EventSelector>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventSelector(String);

/// A text that selects nothing there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an event type such as campaign.started nor a family such as campaign.*")]
pub struct SelectorError(String);

/// Longest piece of a refused text that the error repeats, in characters.
const SHOWN: usize = 64;

impl EventSelector {
    /// Whether an event of this type is meant.
    pub fn matches(&self, event_type: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(family) => event_type.starts_with(family),
            None => event_type == self.0,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let known = match text.strip_suffix(".*") {
            Some(family) => EventType::ALL.iter().any(|kind| kind.family() == family),
            None => EventType::from_name(text).is_some(),
        };
        if known {
            Ok(Self(text.to_owned()))
        } else {
            Err(SelectorError(text.chars().take(SHOWN).collect()))
        }
    }
}

impl TryFrom<String> for EventSelector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<EventSelector> for String {
    fn from(selector: EventSelector) -> Self {
        selector.0
    }
}

impl fmt::Display for EventSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which events a receiver gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Any of these; all when there is none.
    pub types: Vec<EventSelector>,
    /// Of this campaign, its updates and its rollbacks alone.
    pub campaign: Option<CampaignId>,
    /// Of this device, its updates and its rollbacks alone.
    pub device: Option<DeviceId>,
}

impl EventFilter {
    /// Whether the receiver gets this event.
    pub fn matches(&self, event: &StoredEvent) -> bool {
        let wanted = self.types.is_empty()
            || self
                .types
                .iter()
                .any(|selector| selector.matches(&event.event_type));
        let of = |wanted: Option<&str>, named: Option<&str>| wanted.is_none() || wanted == named;
        wanted
            && of(
                self.campaign.as_ref().map(CampaignId::as_str),
                event.campaign(),
            )
            && of(self.device.as_ref().map(DeviceId::as_str), event.device())
    }
}
