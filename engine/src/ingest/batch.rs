//! One batch: what its messages say together, and the transaction that records it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use device_ota_domain::campaign::Group;
use device_ota_domain::device::{DeviceKey, LastError};
use device_ota_domain::update::{Outcome as Reported, UpdateState};
use device_ota_domain::{Update, UpdateId};
use device_ota_protocol::messages::{CheckReason, Heartbeat, Progress, Report};
use jiff::{SignedDuration, Timestamp};

use super::{Answers, Reply};
use crate::changes::Changes;
use crate::chunks::Wanted;
use crate::inbound::{DeviceRef, Inbound, Uplink};
use crate::offers::pair;
use crate::ports::StoreError;
use crate::ports::store::{HeartbeatRow, Touch, Tx};
use crate::{Engine, wire};

/// How long after `rebooting` a report that does not tell when its device started is not taken for one after the
/// restart.
const UNCLEAR_GRACE: SignedDuration = SignedDuration::from_mins(2);

/// Messages that are committed together.
pub(crate) struct Batch {
    messages: Vec<Inbound>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) answers: Answers,
    /// A counter moved or a device appeared: the planner may have something to do.
    pub(crate) moved: bool,
}

impl Outcome {
    /// Both together, in order.
    pub(crate) fn join(&mut self, more: Self) {
        self.answers.join(more.answers);
        self.moved |= more.moved;
    }
}

impl Batch {
    /// Both halves, in order.
    pub(crate) fn halves(mut self) -> (Self, Self) {
        let second = self.messages.split_off(self.messages.len() / 2);
        (self, Self::new(second))
    }

    /// Whose message is the first, for the log.
    pub(crate) fn device(&self) -> &str {
        self.messages.first().map_or("", |m| m.device.id.as_str())
    }

    pub(crate) fn new(messages: Vec<Inbound>) -> Self {
        Self { messages }
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Tells every sender; only after the commit.
    pub(crate) fn acknowledge(self) {
        for message in self.messages {
            if let Some(ack) = message.ack {
                ack.committed();
            }
        }
    }

    /// Records the whole batch in one transaction, or nothing of it. May be called again after an error.
    pub(crate) async fn commit(&self, engine: &Engine) -> Result<Outcome, StoreError> {
        if self
            .messages
            .iter()
            .all(|m| matches!(m.uplink, Uplink::Discarded))
        {
            return Ok(Outcome::default());
        }
        let mut tx = engine.store.begin().await?;
        let mut rows = Rows::load(tx.as_mut(), engine, &self.messages).await?;
        let present = Present::of(&self.messages);
        for message in &self.messages {
            rows.take(engine, message);
        }
        let mut answers = self.answers(&rows);
        let (changes, after) = rows.into_changes();
        let moved = changes.moves_counters() || present.appeared;
        if !changes.is_empty() {
            changes.write(tx.as_mut()).await?;
        }
        let again: Vec<Update> = answers.due_updates(&after);
        tx.touch(&present.touches.into_values().collect::<Vec<_>>())
            .await?;
        if !present.heartbeats.is_empty() {
            tx.insert_heartbeats(&present.heartbeats).await?;
        }
        let devices: Vec<DeviceKey> = again.iter().map(|u| u.device).collect();
        let grounds = if devices.is_empty() {
            Vec::new()
        } else {
            tx.draw_seqs(&devices).await?
        };
        tx.commit().await?;
        for update in after.values() {
            engine.rebooting.note(update);
        }
        let due = pair(again, grounds).into_iter();
        answers.answers.due = due.map(|due| (due.update.id.clone(), due)).collect();
        Ok(Outcome {
            answers: answers.answers,
            moved,
        })
    }

    /// Who is to be answered.
    fn answers(&self, rows: &Rows) -> Pending {
        let mut pending = Pending::default();
        for message in &self.messages {
            let Uplink::Report(report, _) = &message.uplink else {
                continue;
            };
            match report.as_ref() {
                Report::Check(check) => {
                    let due = rows
                        .in_flight_of(message.device.key)
                        .filter(|u| u.to_version != check.version);
                    let offer = due.is_some();
                    pending.again.extend(due.map(|u| u.id.clone()));
                    let reply = Reply {
                        device: message.device.id.clone(),
                        nonce: check.nonce.clone(),
                        offer,
                    };
                    pending.answers.replies.insert(message.device.key, reply);
                }
                Report::Progress(progress) => {
                    let row = rows
                        .by_text(&progress.update_id)
                        .filter(|u| u.device == message.device.key);
                    let told = row.filter(|u| {
                        matches!(
                            u.state,
                            UpdateState::InFlight {
                                cancel_requested: true,
                                ..
                            }
                        )
                    });
                    pending.again.extend(told.map(|u| u.id.clone()));
                }
                Report::Chunk(request) => {
                    let wanted = Wanted {
                        device: message.device.clone(),
                        request: *request,
                    };
                    pending.answers.chunks.push(wanted);
                }
                Report::Heartbeat(_) | Report::Status(_) => {}
            }
        }
        pending
    }
}

/// Answers, and the updates whose offer or command shall be said again.
#[derive(Default)]
struct Pending {
    answers: Answers,
    again: BTreeSet<UpdateId>,
}

impl Pending {
    fn due_updates(&self, changed: &HashMap<UpdateId, Update>) -> Vec<Update> {
        self.again
            .iter()
            .filter_map(|id| changed.get(id))
            .filter(|update| update.group() == Group::InFlight)
            .cloned()
            .collect()
    }
}

/// The updates that the batch speaks of, locked, and as its messages leave them.
struct Rows {
    by_id: HashMap<UpdateId, (Group, Update)>,
    in_flight: HashMap<DeviceKey, UpdateId>,
    touched: BTreeSet<UpdateId>,
    now: Option<Timestamp>,
}

impl Rows {
    async fn load(
        tx: &mut dyn Tx,
        engine: &Engine,
        messages: &[Inbound],
    ) -> Result<Self, StoreError> {
        let (mut ids, mut devices) = (BTreeSet::new(), BTreeSet::new());
        let watch = !engine.rebooting.is_empty();
        for message in messages {
            let Uplink::Report(report, _) = &message.uplink else {
                continue;
            };
            match report.as_ref() {
                Report::Progress(progress) => ids.extend(progress.update_id.parse::<UpdateId>()),
                Report::Check(_) => _ = devices.insert(message.device.key),
                Report::Heartbeat(_) if watch && engine.rebooting.contains(message.device.key) => {
                    devices.insert(message.device.key);
                }
                Report::Heartbeat(_) | Report::Chunk(_) | Report::Status(_) => {}
            }
        }
        let mut found = Vec::new();
        if !ids.is_empty() {
            found.extend(tx.updates(&ids.into_iter().collect::<Vec<_>>()).await?);
        }
        if !devices.is_empty() {
            found.extend(
                tx.in_flight(&devices.into_iter().collect::<Vec<_>>())
                    .await?,
            );
        }
        let in_flight = found
            .iter()
            .filter(|u| u.group() == Group::InFlight)
            .map(|u| (u.device, u.id.clone()))
            .collect();
        let by_id = found
            .into_iter()
            .map(|u| (u.id.clone(), (u.group(), u)))
            .collect();
        Ok(Self {
            by_id,
            in_flight,
            touched: BTreeSet::new(),
            now: None,
        })
    }

    fn by_text(&self, id: &str) -> Option<&Update> {
        self.by_id
            .get(&id.parse::<UpdateId>().ok()?)
            .map(|(_, update)| update)
    }

    fn in_flight_of(&self, device: DeviceKey) -> Option<&Update> {
        let (_, update) = self.by_id.get(self.in_flight.get(&device)?)?;
        (update.group() == Group::InFlight).then_some(update)
    }

    fn take(&mut self, engine: &Engine, message: &Inbound) {
        let Uplink::Report(report, _) = &message.uplink else {
            return;
        };
        self.now = Some(message.at);
        match report.as_ref() {
            Report::Progress(progress) => self.progress(engine, message, progress),
            Report::Check(check) => {
                let new_session = matches!(check.reason, Some(CheckReason::Boot));
                let sighting = if new_session {
                    Sighting::Restarted
                } else {
                    Sighting::Unclear
                };
                self.observe(message, &check.version, sighting);
            }
            Report::Heartbeat(heartbeat) => {
                let sighting = heartbeat.uptime_s.map_or(Sighting::Unclear, Sighting::Up);
                self.observe(message, &heartbeat.version, sighting);
            }
            Report::Chunk(_) | Report::Status(_) => {}
        }
    }

    fn progress(&mut self, engine: &Engine, message: &Inbound, progress: &Progress) {
        let id = progress.update_id.parse::<UpdateId>().ok();
        let Some((before, update)) = id.as_ref().and_then(|id| self.by_id.get(id)).cloned() else {
            return engine.metrics.add("reports_ignored", "unknown_update", 1);
        };
        if update.device != message.device.key {
            return engine.metrics.add("reports_ignored", "foreign_update", 1);
        }
        match update.report(&wire::report(progress), message.at, engine.settings.lease) {
            Reported::Changed(update) => self.put(before, *update),
            Reported::Ignored(_, why) => engine.metrics.add("reports_ignored", why, 1),
        }
    }

    fn observe(&mut self, message: &Inbound, version: &str, sighting: Sighting) {
        let Some(id) = self.in_flight.get(&message.device.key) else {
            return;
        };
        let Some((before, update)) = self.by_id.get(id).cloned() else {
            return;
        };
        if sighting.is_after_restart(&update, message.at)
            && let Some(update) = update.observe_version(version, message.at)
        {
            self.put(before, update);
        }
    }

    fn put(&mut self, before: Group, update: Update) {
        self.touched.insert(update.id.clone());
        self.by_id.insert(update.id.clone(), (before, update));
    }

    /// The changes to write, and every row as it now is.
    fn into_changes(self) -> (Changes, HashMap<UpdateId, Update>) {
        let mut changes = Changes::default();
        let now = self.now.unwrap_or_default();
        for id in &self.touched {
            if let Some((before, update)) = self.by_id.get(id) {
                changes.record(*before, update.clone(), now);
            }
        }
        (
            changes,
            self.by_id
                .into_iter()
                .map(|(id, (_, update))| (id, update))
                .collect(),
        )
    }
}

/// What a report tells of when its device last started.
#[derive(Clone, Copy)]
enum Sighting {
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
    fn is_after_restart(self, update: &Update, at: Timestamp) -> bool {
        let UpdateState::InFlight { since, .. } = update.state else {
            return false;
        };
        let passed = at.duration_since(since);
        match self {
            Self::Restarted => true,
            Self::Up(seconds) => i64::try_from(seconds).is_ok_and(|up| up < passed.as_secs()),
            Self::Unclear => passed > UNCLEAR_GRACE,
        }
    }
}

/// What the batch says of devices' present states, the last word of each.
#[derive(Default)]
struct Present {
    touches: BTreeMap<DeviceKey, Touch>,
    heartbeats: Vec<HeartbeatRow>,
    appeared: bool,
}

impl Present {
    fn of(messages: &[Inbound]) -> Self {
        let mut present = Self::default();
        for message in messages {
            present.take(message);
        }
        present
    }

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
            Uplink::Report(report, payload) => self.report(message, report, payload),
        }
    }

    fn presence(&mut self, message: &Inbound, online: bool, session: i64) {
        let touch = self.touch(&message.device);
        if touch.online.is_none_or(|(_, known)| known <= session) {
            touch.online = Some((online, session));
        }
        if online {
            touch.last_seen = Some(message.at);
        }
    }

    fn report(&mut self, message: &Inbound, report: &Report, payload: &Bytes) {
        let touch = self.touch(&message.device);
        touch.last_seen = Some(message.at);
        match report {
            Report::Heartbeat(heartbeat) => {
                heartbeat_touch(touch, heartbeat, message.at);
                self.heartbeats.push(HeartbeatRow {
                    device: message.device.key,
                    received_at: message.at,
                    // It was parsed as JSON, so it is text.
                    payload: std::str::from_utf8(payload).unwrap_or("{}").to_owned(),
                });
            }
            Report::Check(check) => {
                touch.version = Some(check.version.clone());
                touch.nonce.clone_from(&check.nonce);
                self.appeared = true;
            }
            Report::Progress(progress) => {
                if progress.version.is_some() {
                    touch.version.clone_from(&progress.version);
                }
            }
            Report::Chunk(_) | Report::Status(_) => {}
        }
    }
}

fn heartbeat_touch(touch: &mut Touch, heartbeat: &Heartbeat, at: Timestamp) {
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    touch.version = Some(heartbeat.version.clone());
    touch.slot = heartbeat
        .slot
        .map(|slot| slot.as_str().to_owned())
        .or(touch.slot.take());
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
