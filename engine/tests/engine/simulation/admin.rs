//! Admins of the simulation: they make campaigns, start them, and meddle.

use device_ota_domain::campaign::{Campaign, CampaignState};
use device_ota_domain::device::DeviceChange;
use device_ota_domain::planner::Advance;
use device_ota_domain::ring::Ring;
use device_ota_domain::update::Action;
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, FirmwareId};
use device_ota_engine::Error;
use device_ota_engine::ports::store::Aim;
use rand::RngExt;
use serde_json::json;

use super::Trouble;
use super::draft::HOME;
use super::life::Life;
use super::template::Template;
use super::world::{Event, World};
use crate::fixture::tester;

#[derive(Debug, Clone, Copy)]
pub(super) enum Admin {
    Pause,
    Resume,
    Cancel,
    RollBack,
    CancelOne,
    RetryOne,
    Advance { force: bool },
}

/// What admins do to one device, whatever campaigns there are.
#[derive(Debug, Clone)]
pub(super) enum Hand {
    Update(FirmwareId),
    RollBack,
    NewSecret,
    Delete,
    /// Into the group of continuous campaigns or out of it, and to a ring or to none.
    Move {
        home: bool,
        ring: Option<Ring>,
    },
}

/// A campaign and what is known of it without asking the service.
pub(super) struct Rollout {
    pub(super) id: CampaignId,
    pub(super) limit: u64,
}

impl World {
    /// Makes a campaign for the whole fleet, to be started soon, and plans what admins will do to it.
    pub(super) async fn create(&mut self, template: &Template, version: &'static str) {
        let start = self.rng.random_range(0..600);
        let mut draft = self.any_campaign(start);
        draft["firmware_id"] = json!(template.image(version));
        self.tell(|| format!("{version} to {} devices: {draft}", self.devices.len()));
        let draft = serde_json::from_value(draft).unwrap();
        let life = self.life(0); // nobody dies while campaigns are made
        let view = life.engine.create_campaign(draft, &tester()).await.unwrap();
        let index = self.rollouts.len();
        self.rollouts.push(Rollout {
            id: view.campaign.id,
            limit: u64::from(view.campaign.spec.max_concurrent_updates),
        });
        self.after(start, Event::Start(index));
        if self.trouble.admins {
            for _ in 0..self.rng.random_range(0..5) {
                self.plan_an_admin(index, start);
            }
        }
    }

    fn plan_an_admin(&mut self, rollout: usize, start: i64) {
        let at = start + self.rng.random_range(1..3_000);
        let what = match self.rng.random_range(0..10) {
            0..=2 => {
                // Whoever pauses goes on one day.
                let pause = self.rng.random_range(1..2_000);
                self.after(at + pause, Event::Admin(rollout, Admin::Resume));
                Admin::Pause
            }
            3 => Admin::Cancel,
            4 => Admin::RollBack,
            5 => Admin::Advance {
                force: self.rng.random_bool(0.3),
            },
            6..=7 => Admin::CancelOne,
            _ => Admin::RetryOne,
        };
        self.after(at, Event::Admin(rollout, what));
    }

    /// What admins will do to devices one by one: before, while and after campaigns run.
    pub(super) fn plan_for_single_devices(&mut self, template: &Template) {
        let Trouble { singles, moves, .. } = self.trouble;
        for index in 0..self.devices.len() {
            if moves {
                // Half of them belong to it from the beginning.
                let mut at = 0;
                for _ in 0..self.rng.random_range(2..8) {
                    let rings = [None, None, Some(Ring::Canary), Some(Ring::Production)];
                    let home = self.rng.random_bool(0.6);
                    let ring = rings[self.rng.random_range(0..rings.len())];
                    self.after(at, Event::Hand(index, Hand::Move { home, ring }));
                    at += self.rng.random_range(1..500);
                }
            }
            if self.several() && self.rng.random_bool(0.4) {
                let at = self.rng.random_range(0..3_000);
                self.after(at, Event::Hand(index, Hand::NewSecret));
            }
            if self.several() && self.rng.random_bool(0.1) {
                let at = self.rng.random_range(0..4_000);
                self.after(at, Event::Hand(index, Hand::Delete));
            }
            if singles && self.rng.random_bool(0.4) {
                let at = self.rng.random_range(0..3_000);
                let version = ["2.0.0", "3.0.0"][self.rng.random_range(0..2)];
                let image = template.image(version).clone();
                self.after(at, Event::Hand(index, Hand::Update(image)));
                if self.rng.random_bool(0.5) {
                    let later = at + self.rng.random_range(1..2_000);
                    self.after(later, Event::Hand(index, Hand::RollBack));
                }
            }
        }
    }

    pub(super) async fn hand(&mut self, index: usize, what: Hand) {
        let Some(service) = self.somebody() else {
            return self.after(60, Event::Hand(index, what));
        };
        match what {
            _ if self.devices[index].deleted => return,
            Hand::NewSecret => return self.new_secret(index, service).await,
            Hand::Delete => return self.delete(index, service).await,
            _ => {}
        }
        let life = self.life(service);
        let (id, by) = (&self.devices[index].reference.id, tester());
        let engine = &life.engine;
        let done = match what {
            Hand::Update(image) => {
                let request =
                    json!({"firmware_id": image, "max_retries": 2, "timeout_minutes": 20});
                let request = serde_json::from_value(request).unwrap();
                engine.update_device(id, request, &by).await.map(drop)
            }
            Hand::RollBack => engine
                .roll_back_device(id, "1.0.0", "an admin asked", &by)
                .await
                .map(drop),
            Hand::Move { home, ring } => {
                let change = DeviceChange {
                    groups: Some(Some(home.then(|| HOME.to_owned()).into_iter().collect())),
                    ring: Some(ring),
                    ..DeviceChange::default()
                };
                engine.change_device(id, change, None, &by).await.map(drop)
            }
            Hand::NewSecret | Hand::Delete => return,
        };
        if !life.process.is_dead() {
            allowed(done);
        }
    }

    /// It is none of the fleet any more.
    async fn delete(&mut self, index: usize, service: usize) {
        let life = self.life(service);
        let id = &self.devices[index].reference.id;
        let deleted = life.engine.delete_device(id, None, &tester()).await;
        let dead = life.process.is_dead();
        assert!(dead || deleted.is_ok(), "{deleted:?}");
        let is_left = life.store.device(id).await.unwrap().is_some();
        let device = &mut self.devices[index];
        device.refused_by.clear();
        if is_left {
            return self.after(30, Event::Hand(index, Hand::Delete));
        }
        (device.deleted, device.gone) = (true, true);
    }

    /// Its old secret opens nothing any more, and the device is given the new one in a while.
    async fn new_secret(&mut self, index: usize, service: usize) {
        let life = self.life(service);
        let id = &self.devices[index].reference.id;
        let made = life.engine.new_credentials(id, &tester()).await;
        let dead = life.process.is_dead();
        assert!(dead || made.is_ok(), "{made:?}");
        let device = &mut self.devices[index];
        device.refused_by.clear();
        device.own_secret = made.ok().filter(|_| !dead);
        match device.own_secret.clone() {
            Some(secret) => {
                device.refused_by.insert(service);
                let later = self.rng.random_range(0..60);
                self.after(later, Event::Secret(index, secret));
            }
            // Nobody knows it now.
            None => self.after(30, Event::Hand(index, Hand::NewSecret)),
        }
    }

    pub(super) async fn start(&mut self, index: usize) {
        let id = self.rollouts[index].id.clone();
        let Some(service) = self.somebody() else {
            return self.after(30, Event::Start(index));
        };
        let life = self.life(service);
        let started = life.engine.start_campaign(&id, &tester()).await;
        if life.process.is_dead() {
            return self.after(30, Event::Start(index)); // perhaps once more
        }
        allowed(started.map(drop));
    }

    pub(super) async fn admin(&mut self, index: usize, what: Admin) {
        let Some(service) = self.somebody() else {
            return self.after(60, Event::Admin(index, what));
        };
        let action = [Action::Update, Action::Rollback][self.rng.random_range(0..2)];
        let one = match what {
            Admin::CancelOne => self
                .books
                .any_row(&mut self.rng, &self.rollouts[index].id, None),
            Admin::RetryOne => {
                let id = &self.rollouts[index].id;
                self.books.any_row(&mut self.rng, id, Some(action))
            }
            _ => None,
        };
        if let (Admin::RetryOne, Some(update)) = (what, &one) {
            self.books.may_retry(update);
        }
        if let Admin::RollBack = what {
            self.books.may_revive(&self.rollouts[index].id);
        }
        let life = self.life(service);
        let (id, by) = (&self.rollouts[index].id, tester());
        let engine = &life.engine;
        let done = match what {
            Admin::Pause => engine.pause_campaign(id, &by).await.map(drop),
            Admin::Resume => engine.resume_campaign(id, &by).await.map(drop),
            Admin::Cancel => engine.cancel_campaign(id, &by).await.map(drop),
            Admin::RollBack => engine
                .roll_back_campaign(id, "an admin asked", &by)
                .await
                .map(drop),
            Admin::Advance { force } => advance(life, id, force).await,
            Admin::CancelOne | Admin::RetryOne => match (one, what) {
                (Some(update), Admin::CancelOne) => {
                    engine.cancel_update(&update, &by).await.map(drop)
                }
                (Some(update), _) => engine.retry_update(&update, &by).await.map(drop),
                (None, _) => Ok(()),
            },
        };
        if !life.process.is_dead() {
            allowed(done);
        }
    }

    /// Nothing has happened for a while: an admin looks why, and helps what cannot go on by itself.
    pub(super) async fn somebody_helps(&mut self) -> Result<(), String> {
        for index in 0..self.rollouts.len() {
            let Some(service) = self.somebody() else {
                return Ok(());
            };
            let life = self.life(service);
            let id = self.rollouts[index].id.clone();
            let view = life.engine.campaign(&id).await.map_err(|e| e.to_string())?;
            let Campaign { state, .. } = &view.campaign;
            if view.campaign.follows_its_fleet(self.now()) {
                let named = life.store.named(&view.campaign).await.unwrap();
                let aim = Aim {
                    spec: &view.campaign.spec,
                    named: &named,
                    firmware: &view.firmware,
                    now: self.now(),
                };
                let drift = life.store.drift(&id, aim, 10).await.unwrap();
                if !drift.is_empty() {
                    return Err(format!("{id} does not follow its fleet: {drift:?}"));
                }
            }
            let waits_for_a_person = view
                .waits
                .iter()
                .any(|why| matches!(why, Why::GateManual { .. }));
            let waits_for_whoever_comes = view.campaign.spec.continuous
                && view
                    .waits
                    .iter()
                    .any(|why| matches!(why, Why::GateSamples { .. }));
            let help = match state {
                CampaignState::Paused { .. } => Some(Admin::Resume),
                CampaignState::InProgress(_) if waits_for_a_person => {
                    Some(Admin::Advance { force: false })
                }
                // Whoever came was taken in, and all have ended.
                CampaignState::InProgress(_) if view.waits == [Why::Newcomers] => {
                    Some(Admin::Cancel)
                }
                // Of its open stage nobody is left, and nobody comes.
                CampaignState::InProgress(_) if waits_for_whoever_comes => Some(Admin::Cancel),
                // Who is gone keeps everybody behind them waiting.
                CampaignState::InProgress(_)
                    if self.books.waits_for_the_gone(&id, &self.devices) =>
                {
                    Some(Admin::Cancel)
                }
                _ => None,
            };
            if let Some(help) = help {
                self.tell(|| format!("an admin helps: {help:?} {id}"));
                self.admin(index, help).await;
            }
        }
        // Nor do single devices that are gone take anything.
        for update in self.books.singles_of_the_gone(&self.devices) {
            if let Some(service) = self.somebody() {
                let life = self.life(service);
                let done = life.engine.cancel_update(&update, &tester()).await;
                if !life.process.is_dead() {
                    allowed(done.map(drop));
                }
            }
        }
        Ok(())
    }
}

async fn advance(life: &Life, id: &CampaignId, force: bool) -> Result<(), Error> {
    let stages = life.engine.campaign(id).await?.campaign;
    let next = match &stages.state {
        CampaignState::InProgress(running) => usize::from(running.open_stage) + 1,
        _ => 0,
    };
    let name = stages
        .spec
        .stages
        .get(next)
        .map(|stage| stage.name.as_str());
    let asked = Advance {
        stage: name.filter(|_| force),
        force,
    };
    life.engine
        .advance_campaign(id, asked, None, &tester())
        .await
        .map(drop)
}

/// An admin may be refused, but not because something is broken.
fn allowed(done: Result<(), Error>) {
    if let Err(error) = done {
        let refused = !matches!(
            error,
            Error::Store(_) | Error::Objects(_) | Error::Internal(_)
        );
        assert!(refused, "{error:?}");
    }
}
