//! What a device says: its reports, as its faults make it say them, and its heartbeats.

use std::time::Duration;

use bytes::Bytes;
use device_ota_protocol::messages::{Battery, Phase, Progress, Space, Status};
use device_ota_protocol::topics::Up;
use rand::RngExt as _;
use tokio::time::Instant;

use super::{Device, clock};
use crate::board::Final;
use crate::faults::Flaw;
use crate::mqtt::{self, Client, Topic};

/// Publishes with `QoS` 1 on their way at a time.
const WINDOW: usize = 8;
/// How long a report is held back at most, where reordering is the fault.
const HOLD: Duration = Duration::from_millis(400);
/// Charge of a battery that is nearly empty, and of one that is not.
const LOW_BATTERY_PERCENT: f64 = 5.0;
const BATTERY_PERCENT: f64 = 85.0;
/// Free storage of a device that has little, and of one that has enough.
const LOW_STORAGE_BYTES: u64 = 64 * 1024;
const STORAGE_BYTES: u64 = 4 << 30;
const STORAGE_TOTAL_BYTES: u64 = 8 << 30;

/// Something to publish.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    up: Up,
    payload: Bytes,
    reported: Option<Box<Reported>>,
}

/// The update that a report is about, to be noted when it is acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Reported {
    update_id: String,
    attempt: u32,
    phase: Phase,
    lie: bool,
}

impl Reported {
    fn as_final(&self, acknowledged: bool) -> Option<Final> {
        self.phase.is_final().then(|| Final {
            update_id: self.update_id.clone(),
            attempt: self.attempt,
            phase: self.phase,
            acknowledged,
            lie: self.lie,
        })
    }
}

impl Device {
    /// Queues a message, altered as the device's faults will have it.
    pub(super) fn say(&mut self, up: Up, payload: Vec<u8>) {
        let totals = &self.ctx.board.totals;
        match up {
            Up::Progress => return self.say_progress(payload),
            Up::Heartbeat => totals.heartbeats.one(),
            Up::Check => totals.checks.one(),
            Up::Chunk | Up::Status => {}
        }
        self.outbox.push_back(Outgoing {
            up,
            payload: payload.into(),
            reported: None,
        });
    }

    fn say_progress(&mut self, payload: Vec<u8>) {
        let Ok(mut report) = Progress::parse(&payload) else {
            self.ctx
                .board
                .violation("the agent made an invalid report".to_owned());
            return;
        };
        if report.phase == Phase::Accepted {
            self.downloaded = false;
        }
        let lie = self.perhaps_lie(&mut report);
        let outgoing = Outgoing {
            up: Up::Progress,
            payload: if lie { report.to_bytes() } else { payload }.into(),
            reported: Some(Box::new(Reported {
                update_id: report.update_id,
                attempt: report.attempt,
                phase: report.phase,
                lie,
            })),
        };
        if let Some(reported) = &outgoing.reported
            && let Some(done) = reported.as_final(false)
        {
            self.ctx
                .board
                .update(self.index, |seat| seat.note_final(done));
        }
        let copies = if self.faults.repeat { 2 } else { 1 };
        if let Some((before, _)) = self.held.take() {
            self.send_reports(&outgoing, copies);
            self.send_reports(&before, copies);
        } else if self.faults.reorder && may_wait(report.phase) {
            self.held = Some((outgoing, Instant::now() + HOLD));
        } else {
            self.send_reports(&outgoing, copies);
        }
    }

    /// A device that lies says `completed` where it should say that the image did not start.
    fn perhaps_lie(&self, report: &mut Progress) -> bool {
        let Some(flaw) = self.faults.flaw.filter(|flaw| flaw.is_lie()) else {
            return false;
        };
        if report.phase != Phase::Failed {
            return false;
        }
        report.phase = Phase::Completed;
        report.error = None;
        let other = self.agent.running_slot().other();
        let new = self.agent.state().image(other).map(|i| i.version.clone());
        if flaw == Flaw::LieNewVersion && new.is_some() {
            report.version = new;
        }
        true
    }

    fn send_reports(&mut self, outgoing: &Outgoing, copies: usize) {
        self.ctx.board.totals.reports.add(copies as u64);
        for _ in 0..copies {
            self.outbox.push_back(outgoing.clone());
        }
    }

    /// When a report that is held back has to go.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held.as_ref().map(|(_, until)| *until)
    }

    pub(super) fn release_held(&mut self) {
        if let Some((held, _)) = self.held.take() {
            let copies = if self.faults.repeat { 2 } else { 1 };
            self.send_reports(&held, copies);
        }
    }

    /// Hands what waits to the connection, as far as the window goes.
    pub(super) fn pump(&mut self, client: &mut Client) -> Result<(), mqtt::Error> {
        while let Some(next) = self.outbox.front()
            && (next.up == Up::Chunk || (client.has_window() && client.in_flight() < WINDOW))
        {
            let Some(Outgoing {
                up,
                payload,
                reported,
            }) = self.outbox.pop_front()
            else {
                break;
            };
            let topic = Topic::try_from(self.ctx.prefix.up(self.agent.device_id(), up).as_str())?;
            if up == Up::Chunk {
                client.publish_unacknowledged(&topic, payload)?;
            } else {
                let pid = client.publish(&topic, payload)?;
                self.unacknowledged.push_back((pid, reported));
            }
        }
        if self.outbox.is_empty() {
            self.outbox = std::collections::VecDeque::new();
        }
        Ok(())
    }

    /// Whether all that was said has been heard.
    pub(super) fn has_said_all(&self) -> bool {
        self.outbox.is_empty() && self.unacknowledged.is_empty() && self.held.is_none()
    }

    /// The service has a message, or refused it. Returns the phase it reported, if any.
    pub(super) fn acknowledged(&mut self, pid: u16, accepted: bool) -> Option<Phase> {
        let totals = &self.ctx.board.totals;
        if accepted {
            totals.acknowledged.one();
        } else {
            totals.refused.one();
        }
        let at = self.unacknowledged.iter().position(|(id, _)| *id == pid)?;
        let (_, reported) = self.unacknowledged.remove(at)?;
        let reported = reported.filter(|_| accepted)?;
        if let Some(done) = reported.as_final(true) {
            self.ctx
                .board
                .update(self.index, |seat| seat.note_final(done));
        }
        Some(reported.phase)
    }

    pub(super) fn say_heartbeat(&mut self) {
        let (battery, storage) = self.conditions();
        let mut heartbeat = self.agent.heartbeat();
        heartbeat.boot_id = Some(format!("{:08x}", self.boot_id));
        heartbeat.uptime_s = Some(self.booted_at.elapsed().as_secs());
        heartbeat.sent_at = Some(clock());
        heartbeat.device_type = Some(self.ctx.habits.device_type.clone());
        heartbeat.battery = Some(Battery {
            percent: battery,
            charging: Some(false),
        });
        heartbeat.storage = Some(Space {
            free_bytes: storage,
            total_bytes: Some(STORAGE_TOTAL_BYTES),
        });
        heartbeat.cpu_percent = Some(f64::from(self.rng.random_range(1..60_u8)));
        heartbeat.temperature_c = Some(f64::from(self.rng.random_range(20..70_u8)));
        let transports: &[&str] = if self.takes_chunks {
            &["mqtt"]
        } else {
            &["http", "mqtt"]
        };
        heartbeat.accepts = transports.iter().map(|t| (*t).to_owned()).collect();
        self.say(Up::Heartbeat, heartbeat.to_bytes());
    }

    pub(super) fn say_status(&mut self, online: bool, reason: Option<&str>) {
        let status = Status {
            online,
            reason: reason.map(str::to_owned),
        };
        self.say(Up::Status, status.to_bytes());
    }

    /// Charge in percent and free storage in bytes.
    pub(super) fn conditions(&self) -> (f64, u64) {
        let unwell = self.timers.recover.is_some();
        let battery = if unwell && self.faults.low_battery {
            LOW_BATTERY_PERCENT
        } else {
            BATTERY_PERCENT
        };
        let storage = if unwell && self.faults.low_storage {
            LOW_STORAGE_BYTES
        } else {
            STORAGE_BYTES
        };
        (battery, storage)
    }
}

/// Reports that may be overtaken by the next one without anything being lost.
fn may_wait(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Downloading | Phase::Verifying | Phase::Installing
    )
}
