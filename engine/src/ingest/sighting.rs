//! What a report tells of when its device last started, and what may be concluded from it.

use device_ota_domain::Update;
use device_ota_domain::update::UpdateState;
use jiff::{SignedDuration, Timestamp};

/// How long after `rebooting`, or after the completion, a report that does not tell when its device started is not taken for one
/// that was sent after it. Nor is one, after the completion, that says the device has been up for longer than that: it was under way
/// before, or the device never restarted, and goes on saying so.
const UNCLEAR_GRACE: SignedDuration = SignedDuration::from_mins(2);

/// What a report tells of when its device last started.
#[derive(Clone, Copy)]
pub(super) enum Sighting {
    /// It says that its connection is new.
    Restarted,
    /// It has been up for so many seconds.
    Up(u64),
    /// Nothing.
    Unclear,
}

impl Sighting {
    /// Whether the report was sent after the restart that the update's `rebooting` announced. A heartbeat that was
    /// under way when the device went down shows the old version and means nothing.
    pub(super) fn is_after_restart(self, update: &Update, at: Timestamp) -> bool {
        let UpdateState::InFlight { since, .. } = update.state else {
            return false;
        };
        let passed = at.duration_since(since);
        self.is_of_a_start_within(passed)
            .unwrap_or(passed > UNCLEAR_GRACE)
    }

    /// Whether the report was sent after the device had completed at `completed`. A heartbeat that was under way when it
    /// restarted shows the old version and means nothing; one that never restarted and lies shows it for ever.
    pub(super) fn is_after_completion(self, completed: Timestamp, at: Timestamp) -> bool {
        let passed = at.duration_since(completed);
        self.is_of_a_start_within(passed) == Some(true) || passed > UNCLEAR_GRACE
    }

    /// Whether its device started no longer ago than that, if it tells.
    fn is_of_a_start_within(self, passed: SignedDuration) -> Option<bool> {
        match self {
            Self::Restarted => Some(true),
            Self::Up(seconds) => Some(i64::try_from(seconds).is_ok_and(|up| up < passed.as_secs())),
            Self::Unclear => None,
        }
    }
}
