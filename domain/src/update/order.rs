//! What an update still has coming: from its campaign, and, once it has that, for its device to hear.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::phase::Phase;
use super::state::UpdateState;
use super::{Action, Update};

/// What an update that waits is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// An offer, not before this.
    Offer(Timestamp),
    /// The word to activate what its device holds.
    Activation,
}

/// What a device is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Take this.
    Offer,
    /// Start what lies in the idle slot.
    Activate,
    /// Stop.
    Cancel,
}

impl Update {
    /// What it waits for; `None` when it is under way or has ended.
    pub fn owed(&self) -> Option<Owed> {
        match self.state {
            UpdateState::Pending { due_at, .. } => Some(Owed::Offer(due_at)),
            UpdateState::Staged { .. } => Some(Owed::Activation),
            _ => None,
        }
    }

    /// Whether it gets the device that both want: what goes back comes before what goes forward, then what was asked of the device
    /// alone, then what is of a higher priority and, of the same, older. An order of all updates, so that of two campaigns that want
    /// the same devices one always gets all of them in the end, and none of them wait for each other.
    pub fn goes_before(&self, other: &Self) -> bool {
        let place = |update: &Self| {
            let goes_forward = update.action == Action::Update;
            let is_of_campaign = update.campaign.is_some();
            let age = (Reverse(update.priority), update.created_at);
            (goes_forward, goes_forward && is_of_campaign, age)
        };
        let order = place(self).cmp(&place(other));
        order
            .then_with(|| self.id.as_str().cmp(other.id.as_str()))
            .is_lt()
    }

    /// Whether its device, which holds its image, is taken from it for that one.
    pub fn gives_way_to(&self, other: &Self) -> bool {
        self.owed() == Some(Owed::Activation) && other.goes_before(self)
    }

    /// What its device is to be told while it is in flight, again and again until it answers.
    pub fn order(&self) -> Option<Order> {
        match self.state {
            UpdateState::InFlight {
                cancel_requested: true,
                ..
            } => Some(Order::Cancel),
            UpdateState::InFlight {
                phase: Phase::Staged,
                ..
            } => Some(Order::Activate),
            UpdateState::InFlight { .. } => Some(Order::Offer),
            _ => None,
        }
    }

    /// Its device was offered it, or told to activate what it holds, and has not taken that up: of no way back, and nothing that it
    /// was asked to stop.
    pub fn is_untaken(&self) -> bool {
        match self.state {
            UpdateState::InFlight {
                phase,
                cancel_requested: false,
                hold,
                ..
            } if self.action == Action::Update => {
                phase == Phase::Offered || phase == Phase::Staged && hold
            }
            _ => false,
        }
    }

    /// Its maintenance window has closed before its device took up what it was told: it waits for the next one. `None` when that
    /// is not so.
    pub fn withhold(mut self, now: Timestamp) -> Option<Self> {
        if !self.is_untaken() {
            return None;
        }
        self.state = match self.state {
            UpdateState::InFlight {
                phase: Phase::Staged,
                since,
                ..
            } => UpdateState::Staged { since },
            _ => UpdateState::Pending {
                due_at: now,
                lost_at: None,
                last_failure: None,
            },
        };
        self.updated_at = now;
        Some(self)
    }

    /// Its device has not answered what it was told last.
    pub fn is_unanswered(&self) -> bool {
        match self.state {
            UpdateState::InFlight {
                phase,
                cancel_requested,
                ..
            } => cancel_requested || matches!(phase, Phase::Offered | Phase::Staged),
            _ => false,
        }
    }
}
