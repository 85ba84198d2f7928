//! Holding the service to what it promises about offers, whatever the agent makes of them: at most
//! one live update a device, replaced only by a higher number.

use device_ota_protocol::agent::{Input, Stage};
use device_ota_protocol::messages::Offer;
use device_ota_protocol::objects::Assignment;
use device_ota_protocol::topics::Down;

use super::Device;

/// What an offer is about, by its own word.
struct Offered {
    update_id: String,
    attempt: u32,
    seq: u64,
}

fn read(payload: &[u8]) -> Option<Offered> {
    let offer = Offer::parse(payload).ok()?;
    let assignment: Assignment = serde_json::from_slice(&offer.assignment.payload).ok()?;
    Some(Offered {
        update_id: assignment.update_id,
        attempt: assignment.attempt,
        seq: assignment.seq,
    })
}

impl Device {
    /// Hands an offer to the agent and watches what is going on.
    pub(super) fn offered(&mut self, payload: &[u8]) {
        self.ctx.board.totals.offers.one();
        let seq = self.agent.state().seq;
        let live = self.live_update();
        self.feed(Input::Message {
            down: Down::Offer,
            payload,
        });
        let Some(offered) = read(payload) else {
            let text = format!("{}: an offer cannot be read", self.agent.device_id());
            return self.ctx.board.violation(text);
        };
        if let Some(live) = live.filter(|live| *live != offered.update_id) {
            if offered.seq <= seq {
                self.break_promise(
                    &offered,
                    &format!("offered while {live} is live at seq {seq}"),
                );
            } else {
                self.ctx.board.totals.superseded.one();
            }
        }
        if self.agent.state().seq < seq {
            self.break_promise(&offered, &format!("made the device go back from seq {seq}"));
        }
        let taken = self.live_update().as_ref() == Some(&offered.update_id);
        if taken && offered.seq < seq && self.agent.state().seq != seq {
            self.break_promise(&offered, &format!("taken below seq {seq}"));
        }
    }

    /// The update that is under way.
    fn live_update(&self) -> Option<String> {
        let record = self.agent.state().update.as_deref()?;
        let resting = record.is_finished() || matches!(record.stage, Stage::Deferred { .. });
        (!resting).then(|| record.report.update_id.clone())
    }

    fn break_promise(&self, offered: &Offered, how: &str) {
        let id = self.agent.device_id();
        let Offered {
            update_id,
            attempt,
            seq,
        } = offered;
        let text = format!("{id}: {update_id} attempt {attempt} seq {seq}: {how}");
        self.ctx.board.violation(text);
    }
}
