//! The updates that a batch speaks of, and what its reports do to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use device_ota_domain::campaign::Group;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::statistics::Standing;
use device_ota_domain::update::{Outcome as Reported, Sight, WatchTerms};
use device_ota_domain::{Update, UpdateId};
use device_ota_protocol::messages::{CheckReason, Phase, Progress, Report};
use jiff::Timestamp;

use super::sighting::Sighting;
use super::watched;
use crate::changes::Changes;
use crate::inbound::{Inbound, Uplink};
use crate::ports::StoreError;
use crate::ports::store::Tx;
use crate::{Engine, wire};

/// The updates that the batch speaks of, locked, and as its messages leave them.
pub(super) struct Rows {
    by_id: HashMap<UpdateId, (Standing, Update)>,
    in_flight: HashMap<DeviceKey, UpdateId>,
    /// Completed, and watched since; of devices that seem to have regressed alone.
    watched: HashMap<DeviceKey, UpdateId>,
    /// How devices are watched once they have completed these.
    terms: HashMap<UpdateId, WatchTerms>,
    /// That a device completed these after all says nothing of what it runs: it was given to another one since.
    superseded: BTreeSet<UpdateId>,
    touched: BTreeSet<UpdateId>,
    /// What devices run, where a report of progress says it last.
    pub(super) runs: HashMap<DeviceKey, String>,
    now: Option<Timestamp>,
    /// A device has answered what it was told: its batch has room for another.
    pub(super) answered: bool,
}

impl Rows {
    pub(super) async fn load(
        tx: &mut dyn Tx,
        engine: &Engine,
        messages: &[Inbound],
    ) -> Result<Self, StoreError> {
        let (mut ids, mut devices) = (BTreeSet::new(), BTreeSet::new());
        let mut completing = BTreeMap::new();
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
                        if progress.phase == Phase::Completed
                            && let Ok(id) = &id
                        {
                            let first = completing.entry(id.clone()).or_insert(progress.attempt);
                            *first = progress.attempt.min(*first);
                        }
                        ids.extend(id);
                    }
                    Report::Check(_) => _ = devices.insert(message.device.key),
                    Report::Heartbeat(_) | Report::Chunk(_) | Report::Status(_) => {}
                },
                Uplink::Online { .. }
                | Uplink::Offline { .. }
                | Uplink::Past(_)
                | Uplink::Discarded => {}
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
        let completes =
            |u: &&Update| u.group() != Group::Completed && completing.contains_key(&u.id);
        let of_present = |u: &&Update| {
            u.group() == Group::InFlight && completing.get(&u.id).is_some_and(|a| *a >= u.attempt)
        };
        let late = found.iter().filter(completes).filter(|u| !of_present(u));
        let late: Vec<_> = late.map(|u| u.id.clone()).collect();
        let mut superseded = BTreeSet::new();
        if !late.is_empty() {
            superseded.extend(tx.superseded(&late).await?);
        }
        let mut terms = HashMap::new();
        let lasts = found
            .iter()
            .filter(completes)
            .filter(|u| !superseded.contains(&u.id));
        for update in lasts {
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
            superseded,
            touched: BTreeSet::new(),
            runs: HashMap::new(),
            now: None,
            answered: false,
        })
    }

    pub(super) fn by_text(&self, id: &str) -> Option<&Update> {
        self.by_id
            .get(&id.parse::<UpdateId>().ok()?)
            .map(|(_, update)| update)
    }

    pub(super) fn in_flight_of(&self, device: DeviceKey) -> Option<&Update> {
        let (_, update) = self.by_id.get(self.in_flight.get(&device)?)?;
        (update.group() == Group::InFlight).then_some(update)
    }

    pub(super) fn take(&mut self, engine: &Engine, message: &Inbound) {
        let report = match &message.uplink {
            Uplink::Heartbeat(heartbeat, _) => {
                self.now = Some(message.at);
                self.runs.remove(&message.device.key);
                let sighting = heartbeat.uptime_s.map_or(Sighting::Unclear, Sighting::Up);
                return self.observe(message, (&heartbeat.version, None), sighting);
            }
            Uplink::Report(report) => report.as_ref(),
            Uplink::Online { .. }
            | Uplink::Offline { .. }
            | Uplink::Past(_)
            | Uplink::Discarded => return,
        };
        self.now = Some(message.at);
        match report {
            Report::Progress(progress) => self.progress(engine, message, progress),
            Report::Check(check) => {
                self.runs.remove(&message.device.key);
                let new_session = matches!(check.reason, Some(CheckReason::Boot));
                let sighting = if new_session {
                    Sighting::Restarted
                } else {
                    Sighting::Unclear
                };
                let shown = (check.version.as_str(), check.nonce.as_deref());
                self.observe(message, shown, sighting);
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
        let of_present = update.group() == Group::InFlight && update.attempt == progress.attempt;
        match update.report(&wire::report(progress), message.at, engine.settings.lease) {
            Reported::Changed(update) => {
                let completes = before.group != Group::Completed;
                let after_all = completes && update.group() == Group::Completed;
                if let Some(version) = &progress.version
                    && (of_present || after_all && !self.superseded.contains(&update.id))
                {
                    self.runs.insert(update.device, version.clone());
                }
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

    /// What a check or heartbeat shows: the version that runs, and its nonce.
    fn observe(
        &mut self,
        message: &Inbound,
        (version, nonce): (&str, Option<&str>),
        sighting: Sighting,
    ) {
        self.observe_afterwards(message, (version, nonce), sighting);
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
    fn observe_afterwards(
        &mut self,
        message: &Inbound,
        (running, nonce): (&str, Option<&str>),
        sighting: Sighting,
    ) {
        let Some(id) = self.watched.get(&message.device.key) else {
            return;
        };
        let Some((before, update)) = self.by_id.get(id).cloned() else {
            return;
        };
        let sight = Sight {
            running,
            nonce,
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
    pub(super) fn into_changes(self) -> (Changes, HashMap<UpdateId, Update>) {
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
