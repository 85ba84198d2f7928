//! What the service publishes to a device as plain JSON around signed envelopes: offers and
//! replies. Commands are one envelope, with nothing around it.

use serde::{Deserialize, Serialize};

use super::{Invalid, bounds, message};
use crate::dsse::Envelope;

/// Signed pieces of one offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What the image is.
    pub release: Envelope,
    /// That this device should take it now.
    pub assignment: Envelope,
    /// Leave to go below the device's security floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<Envelope>,
}

message!(Offer);

impl Offer {
    /// Nothing to check: what matters is signed, and checked when it is opened.
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "every message is read the same way"
    )]
    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The answer to a check.
///
/// ```
/// use device_ota_protocol::messages::Reply;
///
/// let reply = Reply::parse(br#"{"nonce":"5f","offer":true,"next_check_s":3600}"#)?;
/// assert!(reply.offer);
/// assert_eq!(Reply::nothing(Some("5f".into()), 60).next_check_s, Some(60));
/// # Ok::<(), device_ota_protocol::messages::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The nonce of the check it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Whether an offer follows.
    pub offer: bool,
    /// Why not, or why not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When to ask again, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_check_s: Option<u64>,
    /// A signed time statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Envelope>,
}

message!(Reply);

impl Reply {
    /// An offer follows.
    pub fn offer_follows(nonce: Option<String>, next_check_s: u64) -> Self {
        Self {
            nonce,
            offer: true,
            reason: None,
            next_check_s: Some(next_check_s),
            time: None,
        }
    }

    /// There is nothing for this device.
    pub fn nothing(nonce: Option<String>, next_check_s: u64) -> Self {
        Self {
            offer: false,
            ..Self::offer_follows(nonce, next_check_s)
        }
    }

    /// The same, with why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The same, with a sealed [`crate::objects::TimeStatement`].
    #[must_use]
    pub fn with_time(mut self, time: Envelope) -> Self {
        self.time = Some(time);
        self
    }

    /// Whether every value is within its bounds.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::names([("nonce", &self.nonce)])?;
        bounds::text("reason", self.reason.as_deref().unwrap_or(""))?;
        bounds::integers([("next_check_s", self.next_check_s)])
    }
}
