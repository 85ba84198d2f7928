//! Campaigns of the simulation, as admins write them: any that the API takes, as far as a world has them.

use jiff::SignedDuration;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::Trouble;
use super::world::World;

/// The group that continuous campaigns are for.
pub(super) const HOME: &str = "home";

impl World {
    /// A campaign for the whole fleet, or for the group, that starts in so many seconds.
    pub(super) fn any_campaign(&mut self, start: i64) -> Value {
        let names: Vec<_> = (0..self.devices.len()).map(Self::name).collect();
        let (trouble, rng) = (self.trouble, &mut self.rng);
        let mut draft = any_draft(rng, names.len(), trouble);
        if trouble.paced {
            set_a_pace(rng, &mut draft);
            // Most of the time of a long story, and the same whoever looks at them.
            if !trouble.replicas {
                set_hours(rng, &mut draft);
            }
        }
        if trouble.faults {
            set_times(rng, &mut draft);
        }
        if trouble.aborts {
            draft["abort"] = any_aborts(rng);
        }
        if trouble.moves && rng.random_bool(0.6) {
            draft["continuous"] = json!(true);
            draft["target_groups"] = json!([HOME]);
            draft["rollout_percentage"] = json!([100, 75][rng.random_range(0..2)]);
        } else {
            draft["target_devices"] = json!(names);
        }
        if trouble.schedules {
            draft["schedule"] = self.any_schedule(start);
        }
        draft
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
}

fn any_draft(rng: &mut StdRng, devices: usize, trouble: Trouble) -> Value {
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
    let strategy = if trouble.holds && rng.random_bool(0.7) {
        "blue_green"
    } else if none && rng.random_bool(0.6) {
        "immediate"
    } else {
        "staged"
    };
    json!({
        "name": "a campaign",
        "stages": stages,
        "deployment_strategy": strategy,
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

/// A time for each part of an attempt, and for an update as a whole: each or not.
fn set_times(rng: &mut StdRng, draft: &mut Value) {
    let attempt = draft["timeout_minutes"].as_u64().unwrap();
    let mut some = |from, to| rng.random_bool(0.3).then(|| rng.random_range(from..=to));
    draft["timeouts"] = json!({
        "download_minutes": some(1, attempt),
        "install_minutes": some(1, attempt),
    });
    let minutes = some(attempt, 240);
    draft["give_up_after_hours"] =
        json!(minutes.map(|m| f64::from(u32::try_from(m).unwrap()) / 60.0));
}

/// A rate, a budget of bandwidth: each or not.
fn set_a_pace(rng: &mut StdRng, draft: &mut Value) {
    let per_minute = rng.random_range(1..10);
    match rng.random_range(0..3) {
        0 => draft["rate"] = json!({ "per_minute": per_minute }),
        1 => {
            draft["rate"] = json!({
                "base_per_minute": 1, "factor": 2, "every": {"succeeded": 1}, "max_per_minute": per_minute,
            });
        }
        _ => {}
    }
    if rng.random_bool(0.4) {
        draft["bandwidth_bytes_per_second"] = json!(rng.random_range(2..200));
    }
}

/// Maintenance windows, or none.
fn set_hours(rng: &mut StdRng, draft: &mut Value) {
    if rng.random_bool(0.3) {
        // In every hour, so that nobody waits for long.
        let (minute, lasts) = (rng.random_range(0..60), rng.random_range(5..50));
        let zone = ["device", "UTC"][rng.random_range(0..2)];
        let hours = (0..24).map(|hour| {
            json!({
                "days": [], "start": format!("{hour:02}:{minute:02}"), "duration_minutes": lasts, "time_zone": zone,
            })
        });
        draft["windows"] = hours.collect();
    }
}

fn any_aborts(rng: &mut StdRng) -> Value {
    let one = |rng: &mut StdRng| {
        json!({
            "on": (["failed", "rejected", "timed_out", "any"][rng.random_range(0..4)]),
            "percent": ([0, 20, 40][rng.random_range(0..3)]),
            "min_samples": rng.random_range(1..4),
            "action": (["pause", "cancel", "rollback"][rng.random_range(0..3)]),
        })
    };
    (0..rng.random_range(0..3)).map(|_| one(rng)).collect()
}
