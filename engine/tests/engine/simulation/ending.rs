//! The end of a story: nothing will ever happen again. What must be true then, of rows, devices and events.

use std::sync::{Arc, Mutex};

use device_ota_domain::Update;
use device_ota_domain::campaign::{CampaignState, Group};
use device_ota_domain::event::{Event, StoredEvent};
use device_ota_domain::update::Action;
use device_ota_engine::ports::Store;
use jiff::SignedDuration;
use rand::RngExt;
use tokio::sync::watch;

use super::audit::line_of;
use super::device::Device;
use super::fate::{Effect, Lot, Process, Recorder, Turn};
use super::life::{LEASE, Life};
use super::world::World;

/// More events than any story has.
const ALL: u32 = 10_000;
/// Longest that a device which fell back needs to show itself: a service that is down, and starts anew.
const LATE: SignedDuration = SignedDuration::from_mins(10);
/// More lives than the delivery of events needs.
const LIVES: u32 = 4;

impl World {
    pub(super) fn devices_run(&self, version: &str) -> bool {
        self.devices.iter().all(|device| device.runs == version)
    }

    pub(super) fn status(&self, rollout: usize) -> &'static str {
        let campaign = self.books.campaigns.get(&self.rollouts[rollout].id);
        campaign.map_or("unknown", |campaign| campaign.state.status())
    }

    pub(super) async fn verdict(&mut self) -> Result<(), String> {
        self.all_is_taken_back()?;
        self.rows_are_true()?;
        self.everybody_is_held().await?;
        let store = self.life(0).store.clone(); // it is at rest, not dead
        self.versions_are_known(store.as_ref()).await?;
        let events = store.events_after(0, ALL).await.unwrap();
        drop(store);
        for service in &mut self.services {
            let life = service.life.take();
            life.expect("all are at rest").end().await;
        }
        self.events_tell_it(&events)?;
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        self.all_is_delivered(&ids).await
    }

    /// A campaign that was rolled back has one rollback for each update that completed, and says why.
    fn all_is_taken_back(&self) -> Result<(), String> {
        for rollout in &self.rollouts {
            let Some(campaign) = self.books.campaigns.get(&rollout.id) else {
                continue;
            };
            let CampaignState::RolledBack { reason, .. } = &campaign.state else {
                continue;
            };
            let rows = self.books.rows.values();
            let of_it = rows.filter(|row| row.campaign.as_ref() == Some(&rollout.id));
            let (back, forth): (Vec<_>, Vec<_>) =
                of_it.partition(|row| row.action == Action::Rollback);
            let completed = forth
                .iter()
                .filter(|row| row.group() == Group::Completed)
                .count();
            // Nobody has withdrawn one, and nobody else has brought another version.
            let alone = !self.trouble.admins && !self.trouble.singles && !self.trouble.rivals;
            let left_out = back.iter().find(|row| {
                let of_it = |device: &&Device| device.reference.key == row.device;
                let liar = self.devices.iter().filter(of_it).any(Device::forges);
                alone && row.group() == Group::Cancelled && !liar
            });
            if let Some(row) = left_out {
                return Err(format!("{}, and nobody asked for that", line_of(row)));
            }
            // Nobody takes anything back from who was deleted.
            let whole = self.devices.iter().all(|device| !device.deleted);
            if reason.is_empty() || whole && back.len() != completed {
                return Err(format!(
                    "{} was rolled back because {reason:?}: {completed} completed, {} rollbacks",
                    rollout.id,
                    back.len()
                ));
            }
        }
        Ok(())
    }

    /// Whoever is there is known to run what it runs, whatever came late or twice.
    async fn versions_are_known(&self, store: &dyn Store) -> Result<(), String> {
        for device in &self.devices {
            // A report may be so late that its device has fallen back since, and be the first of its kind all the same.
            let outdated = self.trouble.noise && device.relapsed_at.is_some();
            if !device.is_online() || device.forges() || outdated {
                continue;
            }
            let known = store.device(&device.reference.id).await.unwrap().unwrap();
            let known = known.running().map(ToString::to_string);
            if known.as_ref() != Some(&device.runs) {
                let (id, runs) = (&device.reference.id, &device.runs);
                return Err(format!("{id} runs {runs}, and is taken to run {known:?}"));
            }
        }
        Ok(())
    }

    /// What the rows say of completed devices is what these run, where only one campaign moves them and nobody forges.
    fn rows_are_true(&self) -> Result<(), String> {
        if self.trouble.rivals || self.trouble.singles {
            return Ok(());
        }
        for device in &self.devices {
            let rows = self.books.rows.values();
            let of_it = rows.filter(|row| row.device == device.reference.key);
            let completed = of_it.filter(|row| row.group() == Group::Completed);
            // A rollback is made after what it takes back.
            let Some(last) = completed.max_by_key(|row| (row.created_at, row.action)) else {
                continue;
            };
            let known = last.regression().is_some() || self.relapsed_unseen(device, last);
            if !device.forges() && !known && device.runs != last.to_version {
                return Err(format!("{}, but it runs {}", line_of(last), device.runs));
            }
        }
        Ok(())
    }

    /// It fell back when nobody was looking at what it had completed, or so shortly before that it showed itself later.
    fn relapsed_unseen(&self, device: &Device, last: &Update) -> bool {
        let campaign = last.campaign.as_ref();
        let campaign = campaign.and_then(|id| self.books.campaigns.get(id));
        let watched = match last.action {
            Action::Update => campaign.map_or(0, |c| c.spec.watch(last.stage, LEASE).seconds),
            Action::Rollback => 0,
        };
        let watched = SignedDuration::from_secs(watched.cast_signed()) - LATE;
        let until = last.ended_at().unwrap().checked_add(watched).unwrap();
        device.relapsed_at.is_some_and(|at| at > until)
    }

    /// The last event of each entity tells how it stands, and events have rising ids.
    fn events_tell_it(&self, events: &[StoredEvent]) -> Result<(), String> {
        if !events.is_sorted_by(|a, b| a.id < b.id) {
            return Err("the ids of events do not rise".to_owned());
        }
        for row in self.books.rows.values() {
            let told = events.iter().rev().find(|event| {
                event.data["update_id"] == row.id.as_str()
                    && !event.event_type.ends_with("initiated")
            });
            let due = Event::regressed(row, self.now()).or_else(|| Event::ended(row, self.now()));
            let due = due.expect("all has ended");
            let told = told.map(|event| event.event_type.as_str());
            if told != Some(due.event_type.name()) {
                return Err(format!("{}, but the last event was {told:?}", line_of(row)));
            }
        }
        for rollout in &self.rollouts {
            let told = events
                .iter()
                .rev()
                .find(|event| event.entity == rollout.id.as_str());
            let told = told
                .map(|event| event.event_type.as_str())
                .unwrap_or_default();
            let status = self.status(
                self.rollouts
                    .iter()
                    .position(|r| r.id == rollout.id)
                    .unwrap_or(0),
            );
            if told.strip_prefix("campaign.") != Some(status) {
                return Err(format!(
                    "{} is {status}, but the last event was {told}",
                    rollout.id
                ));
            }
        }
        Ok(())
    }

    /// Every event is delivered, in order, at least once, however often the process dies meanwhile.
    async fn all_is_delivered(&mut self, ids: &[i64]) -> Result<(), String> {
        let mut delivered = 0;
        // Rarely: the service waits a second then.
        let mut refuses = self
            .rng
            .random_bool(0.1)
            .then(|| self.rng.random_range(0..8));
        for number in 0..LIVES {
            let death = (self.trouble.crashes && number + 1 < LIVES).then(|| Turn {
                lot: Lot::Dies,
                at: [Effect::Deliver, Effect::Commit][self.rng.random_range(0..2)],
                after: self.rng.random_range(0..20),
                too_late: self.rng.random_bool(0.5),
            });
            let heard = self
                .run_until_delivered(death, refuses.take(), ids.last().copied(), number)
                .await;
            let Some(first) = heard.first() else {
                continue;
            };
            let begin = ids.iter().position(|id| id == first);
            let piece = begin.and_then(|begin| ids.get(begin..begin + heard.len()));
            if piece != Some(&heard[..]) || begin.is_none_or(|begin| begin > delivered) {
                return Err(format!(
                    "of the events {ids:?}, {delivered} were delivered, and then {heard:?}"
                ));
            }
            delivered = delivered.max(begin.unwrap_or_default() + heard.len());
            if delivered == ids.len() {
                return Ok(());
            }
        }
        Err(format!(
            "{delivered} of {} events were delivered",
            ids.len()
        ))
    }

    /// The service as it runs in earnest, until it has delivered the last event or dies. What its receiver heard.
    async fn run_until_delivered(
        &self,
        death: Option<Turn>,
        refuses: Option<usize>,
        last: Option<i64>,
        number: u32,
    ) -> Vec<i64> {
        let process = Process::new(death);
        let heard = watch::Sender::new(Vec::new());
        let recorder = Arc::new(Recorder {
            process: process.clone(),
            refuses: Mutex::new(refuses),
            heard: heard.clone(),
        });
        let lives = 1_000 + u64::from(number);
        let (life, work) = Life::new(&self.place(), process.clone(), vec![recorder], lives).await;
        let running = life.run(work);
        let mut deliveries = heard.subscribe();
        tokio::select! {
            _ = deliveries.wait_for(|heard| heard.last().copied() == last) => {}
            () = process.died() => {}
        }
        life.stop();
        running.await.unwrap().unwrap();
        life.end().await;
        heard.borrow().clone()
    }
}
