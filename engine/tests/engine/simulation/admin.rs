//! Admins of the simulation: they make campaigns, start them, and meddle.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::{Campaign, CampaignState};
use device_ota_domain::planner::Advance;
use device_ota_domain::update::Action;
use device_ota_domain::why::Why;
use device_ota_engine::Error;
use jiff::SignedDuration;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

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

/// A campaign and what is known of it without asking the service.
pub(super) struct Rollout {
    pub(super) id: CampaignId,
    pub(super) limit: u64,
}

impl World {
    /// Makes a campaign for the whole fleet, to be started soon, and plans what admins will do to it.
    pub(super) async fn create(&mut self, template: &Template, version: &'static str) {
        let names: Vec<_> = (0..self.devices.len()).map(Self::name).collect();
        let mut draft = any_draft(&mut self.rng, names.len());
        draft["firmware_id"] = json!(template.image(version));
        draft["target_devices"] = json!(names);
        let start = self.rng.random_range(0..600);
        if self.trouble.schedules {
            draft["schedule"] = self.any_schedule(start);
        }
        self.tell(|| format!("{version} to {} devices: {draft}", names.len()));
        let draft = serde_json::from_value(draft).unwrap();
        let life = self
            .life
            .as_ref()
            .expect("nobody dies while campaigns are made");
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

    /// Opens before or after the start, and may end at any time after both.
    fn any_schedule(&mut self, start: i64) -> Value {
        let opens = self.rng.random_range(0..1_200);
        let ends = start.max(opens) + self.rng.random_range(1..4_000);
        let now = self.now();
        let at = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        json!({
            "start_at": self.rng.random_bool(0.7).then(|| at(opens)),
            "end_at": self.rng.random_bool(0.7).then(|| at(ends)),
            "on_end": (if self.rng.random_bool(0.5) { "stop" } else { "cancel" }),
        })
    }

    pub(super) async fn start(&mut self, index: usize) {
        let id = self.rollouts[index].id.clone();
        let Some(life) = &self.life else {
            return self.after(30, Event::Start(index));
        };
        let started = life.engine.start_campaign(&id, &tester()).await;
        if life.process.is_dead() {
            return self.after(30, Event::Start(index)); // perhaps once more
        }
        allowed(started.map(drop));
    }

    pub(super) async fn admin(&mut self, index: usize, what: Admin) {
        let Some(life) = &self.life else {
            return self.after(60, Event::Admin(index, what));
        };
        let (id, by) = (&self.rollouts[index].id, tester());
        let engine = &life.engine;
        let action = [Action::Update, Action::Rollback][self.rng.random_range(0..2)];
        let done = match what {
            Admin::Pause => engine.pause_campaign(id, &by).await.map(drop),
            Admin::Resume => engine.resume_campaign(id, &by).await.map(drop),
            Admin::Cancel => engine.cancel_campaign(id, &by).await.map(drop),
            Admin::RollBack => {
                self.books.may_revive(id);
                engine
                    .roll_back_campaign(id, "an admin asked", &by)
                    .await
                    .map(drop)
            }
            Admin::Advance { force } => advance(life, id, force).await,
            Admin::CancelOne => match self.books.any_row(&mut self.rng, id, None) {
                Some(update) => engine.cancel_update(&update, &by).await.map(drop),
                None => Ok(()),
            },
            Admin::RetryOne => match self.books.any_row(&mut self.rng, id, Some(action)) {
                Some(update) => {
                    self.books.may_retry(&update);
                    engine.retry_update(&update, &by).await.map(drop)
                }
                None => Ok(()),
            },
        };
        if !life.process.is_dead() {
            allowed(done);
        }
    }

    /// Nothing has happened for a while: an admin looks why, and helps what cannot go on by itself.
    pub(super) async fn somebody_helps(&mut self) -> Result<(), String> {
        for index in 0..self.rollouts.len() {
            let Some(life) = &self.life else {
                return Ok(());
            };
            let id = self.rollouts[index].id.clone();
            let view = life.engine.campaign(&id).await.map_err(|e| e.to_string())?;
            let Campaign { state, .. } = &view.campaign;
            let waits_for_a_person = view
                .waits
                .iter()
                .any(|why| matches!(why, Why::GateManual { .. }));
            let help = match state {
                CampaignState::Paused { .. } => Some(Admin::Resume),
                CampaignState::InProgress(_) if waits_for_a_person => {
                    Some(Admin::Advance { force: false })
                }
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

fn any_draft(rng: &mut StdRng, devices: usize) -> Value {
    let gate = |rng: &mut StdRng| {
        json!({
            "min_success_percent": rng.random_range(0..=100),
            "min_samples": rng.random_bool(0.5).then(|| rng.random_range(0..10)),
            "soak_seconds": rng.random_range(0..600),
            "manual": rng.random_bool(0.2),
        })
    };
    let stages = match rng.random_range(0..5) {
        0 | 1 => json!([]),
        2 => json!([{"percent": 30, "gate": gate(rng)}, {"percent": 60, "gate": gate(rng)}]),
        3 => {
            json!([{"count": rng.random_range(1..4), "gate": gate(rng)}, {"percent": 40}, {"count": 5}])
        }
        _ => json!([{"ring": "early", "gate": gate(rng)}, {"ring": "broad"}]),
    };
    let none = stages.as_array().is_some_and(Vec::is_empty);
    json!({
        "name": "a campaign",
        "stages": stages,
        "deployment_strategy": if none && rng.random_bool(0.6) { "immediate" } else { "staged" },
        "max_concurrent_updates": rng.random_range(1..devices + 2),
        "batch_size": rng.random_range(1..8),
        "timeout_minutes": rng.random_range(4..40),
        "auto_rollback": rng.random_bool(0.7),
        "failure_threshold_percent": ([0, 5, 10, 20, 30, 50, 100][rng.random_range(0..7)]),
        "failure_min_samples": rng.random_range(0..5),
        "max_retries": rng.random_range(0..4),
        "health": {
            "watch_seconds": rng.random_range(0..2_500),
            "silent_seconds": rng.random_bool(0.3).then(|| rng.random_range(60..1_000)),
        },
    })
}
