//! When a fleet has reached what it was run for.

use std::time::Duration;

use tokio::time::Instant;

use super::Fleet;
use crate::board::Seat;

/// How long nothing may happen before a fleet counts as idle: longer than a device takes to be
/// offered the next thing.
const IDLE: Duration = Duration::from_secs(5);
/// How long devices with a flaw are waited for once all others have arrived.
const STRAGGLERS: Duration = Duration::from_secs(30);
/// How long the fleet must be where it should be: an update that follows at once is not missed.
const STEADY: Duration = Duration::from_secs(1);

/// When to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Until {
    /// When told to.
    #[default]
    Stopped,
    /// When every device that can runs this version and has said so.
    Version(String),
    /// When the campaign that is watched has ended, and every device with it.
    CampaignEnd,
    /// When updates have happened and no more do.
    Idle,
}

impl std::str::FromStr for Until {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "forever" => Self::Stopped,
            "campaign" => Self::CampaignEnd,
            "idle" => Self::Idle,
            version => Self::Version(version.to_owned()),
        })
    }
}

/// The goal, and since when it is met.
#[derive(Debug)]
pub(super) struct Goal {
    until: Until,
    /// Since when devices without a flaw are where they should be.
    good_since: Option<Instant>,
    /// Since when no device is in an update.
    quiet_since: Option<Instant>,
}

impl Goal {
    pub(super) fn new(until: Until) -> Self {
        Self {
            until,
            good_since: None,
            quiet_since: None,
        }
    }
}

/// What of a fleet matters to its goal.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about a fleet"
)]
struct Look {
    /// All that can are on the version and the service has heard it.
    arrived: bool,
    /// All others had their fault and are done with it.
    settled: bool,
    /// No device is in an update.
    quiet: bool,
    /// Some device was.
    updated: bool,
    /// The service has heard every last word.
    heard: bool,
}

impl Fleet {
    pub(super) fn is_over(&mut self) -> bool {
        let version = match &self.goal.until {
            Until::Version(version) => Some(version.clone()),
            _ => None,
        };
        let look = self.look(version.as_deref());
        let now = Instant::now();
        since(&mut self.goal.good_since, look.arrived, now);
        since(&mut self.goal.quiet_since, look.quiet && look.heard, now);
        let for_at_least = |since: Option<Instant>, time| {
            since.is_some_and(|since| now.duration_since(since) >= time)
        };
        match &self.goal.until {
            Until::Stopped => false,
            Until::Version(_) => {
                let patience = if look.settled { STEADY } else { STRAGGLERS };
                for_at_least(self.goal.good_since, patience)
            }
            Until::CampaignEnd => {
                let ended = self
                    .campaign
                    .as_ref()
                    .is_some_and(crate::api::Campaign::has_ended);
                ended && for_at_least(self.goal.quiet_since, STEADY)
            }
            Until::Idle => look.updated && for_at_least(self.goal.quiet_since, IDLE),
        }
    }

    fn look(&self, version: Option<&str>) -> Look {
        let mut look = Look {
            arrived: true,
            settled: true,
            quiet: true,
            updated: false,
            heard: true,
        };
        self.ctx.board.each(|index, seat| {
            let faults = self.faults.get(index).copied().unwrap_or_default();
            if self.config.can_update(faults) {
                look.arrived &= version.is_none_or(|version| has_arrived(seat, version));
            } else {
                look.settled &= seat.gone || (seat.fault_fired && seat.live.is_none());
            }
            if !seat.gone {
                look.quiet &= seat.live.is_none();
                look.heard &= seat.is_heard();
            }
            look.updated |= seat.last.is_some();
        });
        look
    }
}

fn has_arrived(seat: &Seat, version: &str) -> bool {
    seat.version == version && seat.confirmed && seat.live.is_none() && seat.is_heard() && seat.seen
}

fn since(since: &mut Option<Instant>, holds: bool, now: Instant) {
    *since = if holds { since.or(Some(now)) } else { None };
}
