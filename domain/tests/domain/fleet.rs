//! A model fleet: devices that behave, misbehave and lie, under the planner and the state machines, from a seed.
//!
//! Each test plays many seeds. A seed that breaks a rule prints the end of its story, and the command that plays it again.

mod admin;
mod audit;
mod device;
mod service;
mod world;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use device_ota_domain::CampaignState;
use world::World;

/// Seeds that each test plays.
const SEEDS: u64 = 600;
/// The same of tests with time zones, whose days are long to play.
const WINDOW_SEEDS: u64 = 60;
/// Lines of a story that are told.
const STORY_LINES: usize = 60;

/// What a world may hold.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, all combinations make sense"
)]
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    /// Devices fail, fall silent, put off, reject, go back.
    faults: bool,
    /// Reports are lost on the way, repeated, late, out of order.
    noise: bool,
    /// Admins pause, resume, cancel, retry and roll back.
    admins: bool,
    /// The service is killed between two actions of a plan.
    crashes: bool,
    /// Two campaigns want the same devices.
    rivals: bool,
    /// Campaigns may offer only from one time to another.
    schedules: bool,
    /// Campaigns may let their devices prepare, and flip them together.
    holds: bool,
    /// Campaigns may have maintenance windows.
    windows: bool,
}

/// The last lines of what happened.
#[derive(Clone, Default)]
struct Story(Rc<RefCell<VecDeque<String>>>, bool);

impl Story {
    fn tell(&self, line: impl FnOnce() -> String) {
        if self.1 {
            let mut lines = self.0.borrow_mut();
            if lines.len() == STORY_LINES {
                lines.pop_front();
            }
            lines.push_back(line());
        }
    }
}

fn play(seed: u64, trouble: Trouble, story: Story) -> Result<World, String> {
    let mut world = World::new(seed, trouble, story);
    world.run()?;
    Ok(world)
}

/// Plays every seed; hands each world that ended to `then`.
fn play_all(trouble: Trouble, then: impl FnMut(u64, &World)) {
    play_some(SEEDS, trouble, then);
}

/// The same of the first seeds.
fn play_some(seeds: u64, trouble: Trouble, mut then: impl FnMut(u64, &World)) {
    let chosen = std::env::var("DEVICE_OTA_SEED").ok();
    let seeds = match &chosen {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (0..seeds).collect(),
    };
    for seed in seeds {
        let quiet = catch_unwind(AssertUnwindSafe(|| play(seed, trouble, Story::default())));
        match quiet {
            Ok(Ok(world)) if chosen.is_none() => then(seed, &world),
            _ => retell(seed, trouble),
        }
    }
}

/// Plays a seed again, this time with its story, and fails if it breaks a rule.
fn retell(seed: u64, trouble: Trouble) {
    let story = Story(Rc::default(), true);
    let told = story.clone();
    let end = catch_unwind(AssertUnwindSafe(|| play(seed, trouble, story)));
    let test = std::thread::current();
    let test = test.name().unwrap_or("fleet");
    println!("seed {seed}; to play it again:");
    println!(
        "DEVICE_OTA_SEED={seed} cargo nextest run -p device-ota-domain -E 'test(={test})' --no-capture"
    );
    told.0.borrow().iter().for_each(|line| println!("{line}"));
    match end {
        Ok(Ok(_)) => {}
        Ok(Err(broken)) => panic!("seed {seed}: {broken}"),
        Err(panic) => resume_unwind(panic),
    }
}

#[test]
fn a_fleet_that_behaves_ends_on_the_new_version() {
    play_all(Trouble::default(), |seed, world| {
        assert!(
            matches!(world.state(0), CampaignState::Completed { .. }),
            "seed {seed}"
        );
        assert!(world.devices_run("2.0.0"), "seed {seed}");
    });
}

#[test]
fn a_fleet_that_fails_ends_with_a_stated_reason() {
    let mut ends = std::collections::BTreeMap::<_, u32>::new();
    let (mut regressed, mut given_up, mut parts) = (0, 0, 0);
    play_all(
        Trouble {
            faults: true,
            ..Trouble::default()
        },
        |_, world| {
            *ends.entry(world.state(0).status()).or_default() += 1;
            regressed += world.regressed;
            given_up += world.given_up();
            parts += world.parts_too_long();
        },
    );
    // The seeds are worth something only if they reach every end.
    if std::env::var_os("DEVICE_OTA_SEED").is_none() {
        for end in ["completed", "paused", "rolled_back"] {
            assert!(ends.get(end).is_some_and(|n| *n > 10), "{ends:?}");
        }
        assert!(regressed > 100, "{regressed} devices regressed");
        assert!(given_up > 3, "{given_up} devices never began");
        assert!(parts > 3, "{parts} parts of attempts took too long");
    }
}

#[test]
fn noise_on_the_way_changes_no_rule() {
    play_all(
        Trouble {
            faults: true,
            noise: true,
            ..Trouble::default()
        },
        |_, _| {},
    );
}

#[test]
fn admins_and_crashes_change_no_rule() {
    let trouble = Trouble {
        faults: true,
        admins: true,
        crashes: true,
        ..Trouble::default()
    };
    play_all(trouble, |_, _| {});
}

#[test]
fn two_campaigns_share_a_fleet() {
    play_all(
        Trouble {
            faults: true,
            noise: true,
            admins: true,
            crashes: true,
            rivals: true,
            ..Trouble::default()
        },
        |_, _| {},
    );
}

#[test]
fn a_fleet_that_behaves_prepares_and_flips() {
    let holds = Trouble {
        holds: true,
        ..Trouble::default()
    };
    let mut flips = 0;
    play_all(holds, |seed, world| {
        assert!(
            matches!(world.state(0), CampaignState::Completed { .. }),
            "seed {seed}"
        );
        assert!(world.devices_run("2.0.0"), "seed {seed}");
        flips += world.activations;
    });
    assert!(flips > 1_000 || std::env::var_os("DEVICE_OTA_SEED").is_some());
}

#[test]
fn nothing_goes_forward_outside_of_a_window() {
    for faults in [false, true] {
        let trouble = Trouble {
            faults,
            admins: faults,
            crashes: faults,
            holds: true,
            windows: true,
            ..Trouble::default()
        };
        play_some(WINDOW_SEEDS, trouble, |seed, world| {
            let ended = matches!(world.state(0), CampaignState::Completed { .. });
            assert!(faults || ended && world.devices_run("2.0.0"), "seed {seed}");
        });
    }
}

#[test]
fn whatever_happens_to_devices_that_hold_breaks_no_rule() {
    for rivals in [false, true] {
        let trouble = Trouble {
            faults: true,
            noise: true,
            admins: true,
            crashes: true,
            rivals,
            holds: true,
            schedules: rivals,
            windows: false,
        };
        let (mut flips, mut displaced) = (0, 0);
        play_all(trouble, |_, world| {
            flips += world.activations;
            displaced += world.displaced;
        });
        if std::env::var_os("DEVICE_OTA_SEED").is_none() {
            assert!(flips > 500, "{flips} devices were told to flip");
            assert!(!rivals || displaced > 50, "{displaced} gave way");
        }
    }
}

#[test]
fn a_schedule_is_kept_whatever_happens() {
    play_all(
        Trouble {
            faults: true,
            noise: true,
            admins: true,
            crashes: true,
            rivals: true,
            schedules: true,
            ..Trouble::default()
        },
        |_, _| {},
    );
}
