//! What a batch says of devices' present states, and their heartbeats: read before the batch's turn comes, written in it.

use std::collections::HashMap;
use std::sync::Arc;

use device_ota_domain::device::{DeviceKey, LastError};
use device_ota_protocol::Slot;
use device_ota_protocol::messages::{Heartbeat, Report};
use jiff::Timestamp;

use crate::inbound::{DeviceRef, Inbound, Uplink};
use crate::ports::StoreError;
use crate::ports::replicas::Here;
use crate::ports::store::{Touch, Tx};
use crate::ports::telemetry::HeartbeatRow;

/// What the batch says of devices' present states, the last word of each.
pub(super) struct Present {
    touches: Vec<Touch>,
    heartbeats: Vec<HeartbeatRow>,
    /// A device said that it is there: the planner may have something to do.
    pub(super) appeared: bool,
}

impl Present {
    pub(super) fn of(messages: &[Inbound]) -> Self {
        let mut fold = Fold::default();
        for message in messages {
            fold.take(message);
        }
        Self {
            touches: fold.touches.into_values().collect(),
            heartbeats: fold.heartbeats,
            appeared: fold.appeared,
        }
    }

    /// Nothing is said of anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.touches.is_empty()
    }

    /// Devices run what `runs` says, where it says anything: a later word than that of their checks and heartbeats.
    pub(super) async fn write(
        &self,
        tx: &mut dyn Tx,
        here: Here,
        runs: &HashMap<DeviceKey, String>,
    ) -> Result<(), StoreError> {
        if runs.is_empty() {
            tx.touch_here(&self.touches, here).await?;
        } else {
            let mut touches = self.touches.clone();
            for touch in &mut touches {
                touch.version = runs.get(&touch.device).cloned().or(touch.version.take());
            }
            tx.touch_here(&touches, here).await?;
        }
        if !self.heartbeats.is_empty() {
            tx.insert_heartbeats(&self.heartbeats).await?;
        }
        Ok(())
    }
}

/// Takes messages in order and keeps the last word of each device.
#[derive(Default)]
struct Fold {
    touches: HashMap<DeviceKey, Touch>,
    heartbeats: Vec<HeartbeatRow>,
    appeared: bool,
}

impl Fold {
    fn touch(&mut self, device: &DeviceRef) -> &mut Touch {
        self.touches.entry(device.key).or_insert_with(|| Touch {
            device: device.key,
            ..Touch::default()
        })
    }

    fn take(&mut self, message: &Inbound) {
        match &message.uplink {
            Uplink::Discarded => {}
            Uplink::Online { session } => self.presence(message, true, *session),
            Uplink::Offline { session } => self.presence(message, false, *session),
            Uplink::Heartbeat(heartbeat, payload) => self.heartbeat(message, heartbeat, payload),
            Uplink::Past(payload) => {
                self.touch(&message.device); // the batch says something of it
                self.keep(message, payload);
            }
            Uplink::Report(report) => self.report(message, report),
        }
    }

    fn presence(&mut self, message: &Inbound, online: bool, session: i64) {
        let touch = self.touch(&message.device);
        if touch.online.is_none_or(|(_, known)| known <= session) {
            touch.was_there |= online || touch.online.is_some_and(|(known, _)| known);
            // A second good-bye within the batch is no other absence.
            let first = touch.online.is_none_or(|(known, _)| known);
            touch.left_at = if online {
                None
            } else if first {
                Some(message.at)
            } else {
                touch.left_at
            };
            touch.online = Some((online, session));
        }
        if online {
            touch.last_seen = Some(message.at);
        }
    }

    fn heartbeat(&mut self, message: &Inbound, heartbeat: &Heartbeat, payload: &Arc<str>) {
        let touch = self.touch(&message.device);
        touch.last_seen = Some(message.at);
        heartbeat_touch(touch, heartbeat, message.at);
        self.keep(message, payload);
    }

    fn keep(&mut self, message: &Inbound, payload: &Arc<str>) {
        self.heartbeats.push(HeartbeatRow {
            device: message.device.key,
            received_at: message.at,
            payload: payload.clone(),
        });
    }

    fn report(&mut self, message: &Inbound, report: &Report) {
        let touch = self.touch(&message.device);
        touch.last_seen = Some(message.at);
        match report {
            Report::Check(check) => {
                touch.version = Some(check.version.clone());
                touch.nonce.clone_from(&check.nonce);
                self.appeared = true;
            }
            // What it says of progress may be long past: its version counts when the report does.
            Report::Progress(_) | Report::Heartbeat(_) | Report::Chunk(_) | Report::Status(_) => {}
        }
    }
}

fn heartbeat_touch(touch: &mut Touch, heartbeat: &Heartbeat, at: Timestamp) {
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // Into the same allocation: most heartbeats of a device say the same.
    touch
        .version
        .get_or_insert_default()
        .clone_from(&heartbeat.version);
    touch.slot = heartbeat.slot.map(Slot::as_str).or(touch.slot);
    touch.confirmed = heartbeat.confirmed.or(touch.confirmed);
    touch.battery_percent = heartbeat
        .battery
        .map(|b| b.percent)
        .or(touch.battery_percent);
    touch.charging = heartbeat
        .battery
        .and_then(|b| b.charging)
        .or(touch.charging);
    touch.free_storage_bytes = heartbeat
        .storage
        .map(|s| bytes(s.free_bytes))
        .or(touch.free_storage_bytes);
    touch.security_floor = heartbeat.security_floor.map(bytes).or(touch.security_floor);
    touch.reported_model = heartbeat
        .device_model
        .clone()
        .or(touch.reported_model.take());
    touch.error_count = Some(errors(heartbeat));
    if let Some(last) = heartbeat.errors.last() {
        touch.last_error = Some(LastError {
            code: last.code.clone(),
            message: last.message.clone(),
            at: last.at.unwrap_or(at),
        });
    }
    if !heartbeat.metrics.is_empty() {
        touch.metrics = Some(heartbeat.metrics.clone());
    }
}

/// Errors that a heartbeat tells of, each as often as it says.
fn errors(heartbeat: &Heartbeat) -> i64 {
    let counts = heartbeat.errors.iter().map(|e| e.count.unwrap_or(1));
    let sum = counts.fold(0, u64::saturating_add);
    i64::try_from(sum).unwrap_or(i64::MAX)
}
