//! Webhooks: who wants to be told of events over HTTP, how far each has come, and what follows when it does not answer.
//!
//! Each has its own place in the outbox, so that one that is slow or dead delays nobody else. [`Webhook::delivered`],
//! [`Webhook::passed_over`] and [`Webhook::failed`] move it on.

use jiff::{SignedDuration, Timestamp};

use crate::event::{EventFilter, EventSelector};
use crate::ids::{CampaignId, WebhookId};

/// Longest address, in bytes.
pub const MAX_URL_BYTES: usize = 2_048;
/// Most event types and families of one webhook.
pub const MAX_EVENT_TYPES: usize = 32;
/// Longest error that is kept of a receiver, in characters.
pub const MAX_ERROR_CHARS: usize = 256;
/// The first pause after a failure; each further one is about twice as long.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// A webhook that has taken nothing for this long is disabled: nobody looks after it, and its events would stay for ever.
const GIVE_UP_AFTER: SignedDuration = SignedDuration::from_hours(3 * 24);
/// When nobody has tried for so long after a try was due, there was nothing to send or nobody who could send it: that time
/// says nothing of the receiver, and its failures begin anew.
const UNTRIED: SignedDuration = SignedDuration::from_mins(10);

/// Whether a webhook is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookStatus {
    /// It gets its events.
    Active,
    /// It gets none, by an admin's will, and goes on where it stopped.
    Paused,
    /// It gets none, because of what happened.
    Disabled {
        /// What that was.
        reason: String,
    },
}

impl WebhookStatus {
    /// The names of all of them.
    pub const NAMES: [&'static str; 3] = ["active", "paused", "disabled"];

    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled { .. } => "disabled",
        }
    }
}

/// A run of failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// How often the event that it is at was refused, so far.
    pub tries: u32,
    /// When the first one failed since something was last taken, or since nothing had been tried for long.
    pub since: Timestamp,
    /// When the next try is due.
    pub due_at: Timestamp,
    /// What the last one said.
    pub error: String,
}

/// One webhook. Its secret is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// Where events go.
    pub url: String,
    /// Which types; all when there is none.
    pub event_types: Vec<EventSelector>,
    /// Of this campaign alone.
    pub campaign: Option<CampaignId>,
    /// Whether it is served.
    pub status: WebhookStatus,
    /// It needs no event up to this one any more.
    pub place: i64,
    /// Why it gets nothing at the moment, if so.
    pub trouble: Option<Trouble>,
    /// When it last took an event.
    pub delivered_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Rises with each change of what is wanted of it.
    pub revision: i64,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Why a receiver has not taken an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It was not there, or had no time: that says nothing of the event, which waits for it. What happened, for people.
    #[error("{0}")]
    Away(String),
    /// It was there, and did not want it; it may want the next one. What happened, for people.
    #[error("{0}")]
    Refused(String),
    /// It says that it is gone for good (410).
    #[error("it answered 410 Gone")]
    Gone,
}

/// How often an event is tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Patience {
    /// Refusals of one event before it is laid aside.
    pub tries: u32,
    /// A number from 0 to 1 by which the next pause is spread, so that many that failed together do not come back together.
    pub spread: f64,
}

/// What follows from a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The event is tried again.
    Later(Webhook),
    /// The event is laid aside, and after a pause the next one has its turn.
    Dead(Webhook, DeadLetter),
    /// Nothing is sent any more.
    Disabled(Webhook),
}

/// An event that was laid aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event.
    pub event: i64,
    /// How often it was refused.
    pub tries: u32,
    /// What the last try said.
    pub error: String,
    /// When it was laid aside.
    pub at: Timestamp,
}

impl Webhook {
    /// Which events it gets.
    pub fn filter(&self) -> EventFilter {
        EventFilter {
            types: self.event_types.clone(),
            campaign: self.campaign.clone(),
            device: None,
        }
    }

    /// It has taken the event.
    #[must_use]
    pub fn delivered(self, event: i64, now: Timestamp) -> Self {
        Self {
            place: event,
            trouble: None,
            delivered_at: Some(now),
            ..self
        }
    }

    /// It does not want the event.
    #[must_use]
    pub fn passed_over(self, event: i64) -> Self {
        Self {
            place: event,
            ..self
        }
    }

    /// It has not taken the event.
    pub fn failed(self, event: i64, why: &NotTaken, now: Timestamp, patience: Patience) -> Failed {
        let error: String = why.to_string().chars().take(MAX_ERROR_CHARS).collect();
        if *why == NotTaken::Gone {
            return Failed::Disabled(self.disabled(error));
        }
        let (before, since) = match &self.trouble {
            Some(trouble) if now.duration_since(trouble.due_at) <= UNTRIED => {
                (trouble.tries, trouble.since)
            }
            Some(trouble) => (trouble.tries, now),
            None => (0, now),
        };
        let failing_for = now.duration_since(since);
        if failing_for >= GIVE_UP_AFTER {
            return Failed::Disabled(
                self.disabled(format!("nothing was taken for 3 days: {error}")),
            );
        }
        let trouble = |tries, pause| {
            Some(Trouble {
                tries,
                since,
                due_at: now + spread(pause, patience.spread),
                error: error.clone(),
            })
        };
        let (tries, pause) = match why {
            NotTaken::Refused(_) => (before + 1, doubled(before)),
            // As long again as it has been away.
            _ => (before, failing_for),
        };
        if tries == before || tries < patience.tries {
            return Failed::Later(Self {
                trouble: trouble(tries, pause),
                ..self
            });
        }
        // Whoever refuses everything gets through it slowly.
        let next = Self {
            place: event,
            trouble: trouble(0, failing_for),
            ..self
        };
        let letter = DeadLetter {
            event,
            tries,
            error,
            at: now,
        };
        Failed::Dead(next, letter)
    }

    /// It gets nothing any more.
    #[must_use]
    pub fn disabled(self, reason: String) -> Self {
        Self {
            status: WebhookStatus::Disabled { reason },
            ..self
        }
    }
}

/// The pause after so many refusals and one more.
fn doubled(refusals: u32) -> SignedDuration {
    FIRST_PAUSE * (1 << refusals.min(16))
}

/// Between half of the pause and all of it, within bounds.
fn spread(pause: SignedDuration, spread: f64) -> SignedDuration {
    let half = pause.clamp(FIRST_PAUSE, LONGEST_PAUSE) / 2;
    half + SignedDuration::from_secs_f64(half.as_secs_f64() * spread.clamp(0.0, 1.0))
}
