//! One batch: what its messages say together, and the transaction that records it.

use std::collections::{BTreeSet, HashMap};

use device_ota_domain::campaign::Group;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::statistics::Standing;
use device_ota_domain::update::{Order, Outcome as Reported, Sight, WatchTerms};
use device_ota_domain::{Update, UpdateId};
use device_ota_protocol::messages::{CheckReason, Phase, Progress, Report};
use jiff::Timestamp;

use super::present::Present;
use super::sighting::Sighting;
use super::{Answers, Reply, watched};
use crate::changes::Changes;
use crate::chunks::Wanted;
use crate::inbound::{Inbound, Uplink};
use crate::offers::pair;
use crate::ports::StoreError;
use crate::ports::store::Tx;
use crate::{Engine, wire};

/// Messages that are committed together.
pub(crate) struct Batch {
    messages: Vec<Inbound>,
    present: Present,
    /// Some message tells of updates or wants an answer, so rows have to be read.
    asks: bool,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) answers: Answers,
    /// A counter moved, a device has answered or appeared: the planner may have something to do.
    pub(crate) moved: bool,
}

impl Batch {
    pub(crate) fn new(messages: Vec<Inbound>) -> Self {
        Self {
            present: Present::of(&messages),
            asks: messages.iter().any(|m| asks(&m.uplink)),
            messages,
        }
    }

    /// Both halves, in order.
    pub(crate) fn halves(self) -> (Self, Self) {
        let mut first = self.messages;
        let second = first.split_off(first.len() / 2);
        (Self::new(first), Self::new(second))
    }

    /// Whose message is the first, for the log.
    pub(crate) fn device(&self) -> &str {
        self.messages.first().map_or("", |m| m.device.id.as_str())
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
        if self.present.is_empty() {
            return Ok(Outcome::default()); // all of it was discarded
        }
        let mut tx = engine.store.begin().await?;
        let mut said = Said::default();
        if self.asks || !engine.rebooting.is_empty() || !engine.watched.is_empty() {
            said = self.record_reports(engine, tx.as_mut()).await?;
        }
        self.present.write(tx.as_mut()).await?;
        let devices: Vec<DeviceKey> = said.again.iter().map(|u| u.device).collect();
        let grounds = if devices.is_empty() {
            Vec::new()
        } else {
            tx.draw_seqs(&devices).await?
        };
        engine.commit(tx).await?;
        for update in said.after.values() {
            engine.rebooting.note(update);
            engine.watched.note(update);
        }
        let due = pair(said.again, grounds).into_iter();
        said.answers.due = due.map(|due| (due.update.id.clone(), due)).collect();
        Ok(Outcome {
            answers: said.answers,
            moved: said.moved || self.present.appeared,
        })
    }

    /// What the reports say of updates, written down.
    async fn record_reports(&self, engine: &Engine, tx: &mut dyn Tx) -> Result<Said, StoreError> {
        let mut rows = Rows::load(tx, engine, &self.messages).await?;
        for message in &self.messages {
            rows.take(engine, message);
        }
        let Pending { answers, again } = self.answers(&rows);
        let answered = rows.answered;
        let (changes, after) = rows.into_changes();
        let moved = answered || changes.moves_counters();
        if !changes.is_empty() {
            changes.write(tx).await?;
        }
        let again = again.iter().filter_map(|id| after.get(id));
        Ok(Said {
            answers,
            again: again
                .filter(|update| update.group() == Group::InFlight)
                .cloned()
                .collect(),
            after,
            moved,
        })
    }

    /// Who is to be answered.
    fn answers(&self, rows: &Rows) -> Pending {
        let mut pending = Pending::default();
        for message in &self.messages {
            let Uplink::Report(report) = &message.uplink else {
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
                        version: check.version.clone(),
                        offer,
                    };
                    pending.answers.replies.insert(message.device.key, reply);
                }
                Report::Progress(progress) => {
                    let row = rows
                        .by_text(&progress.update_id)
                        .filter(|u| u.device == message.device.key);
                    // It has not heard yet: that it shall stop, or start what it holds.
                    let told = row.filter(|u| match u.order() {
                        Some(Order::Cancel) => true,
                        Some(Order::Activate) => progress.phase == Phase::Staged,
                        _ => false,
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

/// What a batch's reports lead to.
#[derive(Default)]
struct Said {
    answers: Answers,
    /// Updates whose offer or command shall be said again.
    again: Vec<Update>,
    /// Every update that the batch spoke of.
    after: HashMap<UpdateId, Update>,
    /// A counter moved, or a device has answered.
    moved: bool,
}

/// Whether a message may tell of an update or want an answer.
fn asks(uplink: &Uplink) -> bool {
    match uplink {
        Uplink::Report(report) => !matches!(**report, Report::Status(_)),
        _ => false,
    }
}

/// The updates that the batch speaks of, locked, and as its messages leave them.
struct Rows {
    by_id: HashMap<UpdateId, (Standing, Update)>,
    in_flight: HashMap<DeviceKey, UpdateId>,
    /// Completed, and watched since; of devices that seem to have regressed alone.
    watched: HashMap<DeviceKey, UpdateId>,
    /// How devices are watched once they have completed these.
    terms: HashMap<UpdateId, WatchTerms>,
    touched: BTreeSet<UpdateId>,
    now: Option<Timestamp>,
    /// A device has answered what it was told: its batch has room for another.
    answered: bool,
}

impl Rows {
    async fn load(
        tx: &mut dyn Tx,
        engine: &Engine,
        messages: &[Inbound],
    ) -> Result<Self, StoreError> {
        let (mut ids, mut devices) = (BTreeSet::new(), BTreeSet::new());
        let mut completing = BTreeSet::new();
        let watch = !engine.rebooting.is_empty();
        for message in messages {
            match &message.uplink {
                Uplink::Heartbeat(..) => {
                    if watch && engine.rebooting.contains(message.device.key) {
                        devices.insert(message.device.key);
                    }
                }
                Uplink::Report(report) => match report.as_ref() {
                    Report::Progress(progress) => {
                        let id = progress.update_id.parse::<UpdateId>();
                        if progress.phase == Phase::Completed {
                            completing.extend(id.clone());
                        }
                        ids.extend(id);
                    }
                    Report::Check(_) => _ = devices.insert(message.device.key),
                    Report::Heartbeat(_) | Report::Chunk(_) | Report::Status(_) => {}
                },
                Uplink::Online { .. } | Uplink::Offline { .. } | Uplink::Discarded => {}
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
        let mut terms = HashMap::new();
        let completes = |u: &&Update| completing.contains(&u.id) && u.group() != Group::Completed;
        for update in found.iter().filter(completes) {
            terms.insert(update.id.clone(), engine.watch_terms(tx, update).await?);
        }
        let suspects = watched::suspects(engine, messages);
        if !suspects.is_empty() {
            let watched = tx.watched(&suspects).await?;
            let seen: BTreeSet<_> = watched.iter().map(|update| update.device).collect();
            let unseen = suspects.into_iter().filter(|device| !seen.contains(device));
            engine.watched.forget(unseen);
            found.extend(watched);
        }
        let watched = found.iter().filter(|update| update.watch().is_some());
        let watched = watched.map(|u| (u.device, u.id.clone())).collect();
        let in_flight = found
            .iter()
            .filter(|u| u.group() == Group::InFlight)
            .map(|u| (u.device, u.id.clone()))
            .collect();
        let by_id = found
            .into_iter()
            .map(|u| (u.id.clone(), (u.standing(), u)))
            .collect();
        Ok(Self {
            by_id,
            in_flight,
            watched,
            terms,
            touched: BTreeSet::new(),
            now: None,
            answered: false,
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
        let report = match &message.uplink {
            Uplink::Heartbeat(heartbeat, _) => {
                self.now = Some(message.at);
                let sighting = heartbeat.uptime_s.map_or(Sighting::Unclear, Sighting::Up);
                return self.observe(message, &heartbeat.version, sighting);
            }
            Uplink::Report(report) => report.as_ref(),
            Uplink::Online { .. } | Uplink::Offline { .. } | Uplink::Discarded => return,
        };
        self.now = Some(message.at);
        match report {
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
            Report::Heartbeat(_) | Report::Chunk(_) | Report::Status(_) => {}
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
            Reported::Changed(update) => {
                let completes = before.group != Group::Completed;
                let terms = self.terms.get(&update.id).filter(|_| completes);
                let update = match terms {
                    Some(terms) => update.watched(*terms),
                    None => *update,
                };
                if update.watch().is_some() {
                    self.watched.insert(update.device, update.id.clone());
                }
                self.put(before, update);
            }
            Reported::Ignored(_, why) => engine.metrics.add("reports_ignored", why, 1),
        }
    }

    fn observe(&mut self, message: &Inbound, version: &str, sighting: Sighting) {
        self.observe_afterwards(message, version, sighting);
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

    /// What it shows of an update that has completed.
    fn observe_afterwards(&mut self, message: &Inbound, version: &str, sighting: Sighting) {
        let Some(id) = self.watched.get(&message.device.key) else {
            return;
        };
        let Some((before, update)) = self.by_id.get(id).cloned() else {
            return;
        };
        let sight = Sight {
            running: version,
            restarted: matches!(sighting, Sighting::Restarted),
            at: message.at,
        };
        let completed = update.ended_at().unwrap_or(message.at);
        if sighting.is_after_completion(completed, message.at)
            && let Some(update) = update.observe_afterwards(&sight)
        {
            self.put(before, update);
        }
    }

    fn put(&mut self, before: Standing, update: Update) {
        let known = self.by_id.get(&update.id);
        let waited = known.is_some_and(|(_, known)| known.is_unanswered());
        self.answered |= waited && !update.is_unanswered();
        self.touched.insert(update.id.clone());
        self.by_id.insert(update.id.clone(), (before, update));
    }

    /// The changes to write, and every row as it now is.
    fn into_changes(self) -> (Changes, HashMap<UpdateId, Update>) {
        let mut changes = Changes::default();
        let now = self.now.unwrap_or_default();
        for id in &self.touched {
            if let Some((before, update)) = self.by_id.get(id) {
                changes.record(before, update.clone(), now);
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
