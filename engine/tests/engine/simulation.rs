//! The whole service simulated: the real engine on a real database, with devices that behave, misbehave and lie, a
//! network that loses and repeats, admins that meddle, and a process that dies between any two things it does and starts
//! anew on what is in the database. Everything follows from a seed.
//!
//! Each test plays many seeds. A seed that breaks a rule prints the end of its story, and the command that plays it again.

mod admin;
mod audit;
mod base;
mod device;
mod draft;
mod ending;
mod fate;
mod gateway;
mod life;
mod network;
mod pace;
mod replicas;
mod rivals;
mod sent;
mod service;
mod template;
mod world;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use tokio::runtime::Runtime;

use template::Template;
use world::World;

/// Seeds that each test plays.
const SEEDS: u64 = 45;
/// The same where campaigns wait for hours.
const PACED_SEEDS: u64 = 15;
/// The same on PostgreSQL, where a world takes longer.
const POSTGRES_SEEDS: u64 = 4;
/// The same where there are two processes.
const REPLICA_SEEDS: u64 = 6;
/// And on PostgreSQL.
const POSTGRES_REPLICA_SEEDS: u64 = 1;
/// A world that takes longer than this has come to a stop.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// Lines of a story that are told.
const STORY_LINES: usize = 80;

/// What a world may hold.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, all combinations make sense"
)]
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    /// Devices fail, fall silent, put off, reject, go back, forge.
    faults: bool,
    /// Messages are lost on the way, repeated, late, out of order.
    noise: bool,
    /// Admins pause, resume, cancel, retry and roll back.
    admins: bool,
    /// The process dies between any two things that it does.
    crashes: bool,
    /// Two campaigns want the same devices.
    rivals: bool,
    /// Campaigns may offer only from one time to another.
    schedules: bool,
    /// Campaigns may let their devices prepare, and flip them together.
    holds: bool,
    /// Campaigns may have rates, budgets of bandwidth and maintenance windows.
    paced: bool,
    /// Campaigns may stop at failures of one kind.
    aborts: bool,
    /// Admins update single devices and take them back.
    singles: bool,
    /// Admins move devices between groups and rings, and campaigns may follow.
    moves: bool,
    /// The database is PostgreSQL.
    postgres: bool,
    /// There are two processes on it.
    replicas: bool,
}

impl Trouble {
    /// All of it.
    const ALL: Self = Self {
        faults: true,
        noise: true,
        admins: true,
        crashes: true,
        rivals: true,
        schedules: true,
        holds: true,
        paced: true,
        aborts: true,
        singles: true,
        moves: true,
        postgres: false,
        replicas: false,
    };

    /// What is rolled out.
    fn versions(self) -> &'static [&'static str] {
        if self.rivals {
            &["2.0.0", "3.0.0"]
        } else {
            &["2.0.0"]
        }
    }
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

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn play(template: &Template, seed: u64, trouble: Trouble, story: Story) -> Result<World, String> {
    runtime().block_on(async {
        let mut world = World::new(template, seed, trouble, story).await;
        let end = tokio::time::timeout(PATIENCE, world.run()).await;
        end.map_err(|_| format!("nothing happens any more: {}", world.books()))??;
        Ok(world)
    })
}

/// As many as a test has time for, or those of `DEVICE_OTA_SEEDS`, such as `1000..3000`.
fn many_seeds() -> std::ops::Range<u64> {
    let Ok(seeds) = std::env::var("DEVICE_OTA_SEEDS") else {
        return 0..SEEDS;
    };
    let (from, to) = seeds.split_once("..").unwrap();
    from.parse().unwrap()..to.parse().unwrap()
}

/// Nobody has chosen the seeds.
fn is_whole() -> bool {
    let chosen = |name| std::env::var_os(name).is_some();
    !chosen("DEVICE_OTA_SEED") && !chosen("DEVICE_OTA_SEEDS")
}

/// Plays every seed; hands each world that ended to `then`.
fn play_all(trouble: Trouble, then: impl FnMut(&World)) {
    play_some(many_seeds(), trouble, then);
}

/// The same of these seeds.
fn play_some(seeds: std::ops::Range<u64>, trouble: Trouble, mut then: impl FnMut(&World)) {
    let template = runtime().block_on(Template::make());
    let chosen = std::env::var("DEVICE_OTA_SEED").ok();
    let seeds = match &chosen {
        Some(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        None => seeds,
    };
    for seed in seeds {
        let quietly = || play(&template, seed, trouble, Story::default());
        match catch_unwind(AssertUnwindSafe(quietly)) {
            Ok(Ok(world)) if chosen.is_none() => then(&world),
            Ok(Ok(_)) => retell(&template, seed, trouble, "nothing"),
            Ok(Err(broken)) => retell(&template, seed, trouble, &broken),
            Err(_) => retell(&template, seed, trouble, "a panic, as above"),
        }
    }
}

/// Plays a seed again, this time with its story, and fails if it breaks a rule.
fn retell(template: &Template, seed: u64, trouble: Trouble, first: &str) {
    let story = Story(Rc::default(), true);
    let told = story.clone();
    let end = catch_unwind(AssertUnwindSafe(|| play(template, seed, trouble, story)));
    let test = std::thread::current();
    let test = test.name().unwrap_or("simulation");
    println!("seed {seed}; to play it again:");
    println!(
        "DEVICE_OTA_SEED={seed} cargo nextest run -p device-ota-engine -E 'test(={test})' --no-capture"
    );
    told.0.borrow().iter().for_each(|line| println!("{line}"));
    match end {
        Ok(Ok(_)) if std::env::var_os("DEVICE_OTA_SEED").is_some() => {}
        Ok(Ok(_)) => panic!("seed {seed}, and not when it was told again: {first}"),
        Ok(Err(broken)) => panic!("seed {seed}: {broken}"),
        Err(panic) => resume_unwind(panic),
    }
}

#[test]
fn a_fleet_that_behaves_ends_on_the_new_version() {
    let crashes = true;
    play_all(
        Trouble {
            crashes,
            ..Trouble::default()
        },
        |world| assert!(world.devices_run("2.0.0")),
    );
}

#[test]
fn a_fleet_that_fails_ends_with_a_stated_reason() {
    let mut ends = std::collections::BTreeMap::<_, u32>::new();
    play_all(
        Trouble {
            faults: true,
            ..Trouble::default()
        },
        |world| *ends.entry(world.status(0)).or_default() += 1,
    );
    // The seeds are worth something only if they reach every end.
    if is_whole() {
        for end in ["completed", "rolled_back"] {
            assert!(ends.get(end).is_some_and(|n| *n > 5), "{ends:?}");
        }
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
        |_| {},
    );
}

#[test]
fn a_process_that_dies_changes_no_rule() {
    play_all(
        Trouble {
            faults: true,
            crashes: true,
            ..Trouble::default()
        },
        |_| {},
    );
}

#[test]
fn admins_and_crashes_change_no_rule() {
    play_all(
        Trouble {
            faults: true,
            admins: true,
            crashes: true,
            ..Trouble::default()
        },
        |_| {},
    );
}

#[test]
fn a_fleet_that_prepares_flips_whatever_happens() {
    let trouble = Trouble {
        faults: true,
        noise: true,
        crashes: true,
        holds: true,
        ..Trouble::default()
    };
    let mut flips = 0;
    play_all(trouble, |world| flips += world.books().flips());
    assert!(
        !is_whole() || flips > 10,
        "{flips} devices were told to flip"
    );
}

#[test]
fn a_campaign_keeps_its_pace_and_its_hours() {
    let trouble = Trouble {
        faults: true,
        crashes: true,
        paced: true,
        aborts: true,
        ..Trouble::default()
    };
    let seeds = many_seeds();
    let few = if is_whole() { 0..PACED_SEEDS } else { seeds };
    play_some(few, trouble, |_| {});
}

#[test]
fn campaigns_follow_a_fleet_that_changes() {
    let trouble = Trouble {
        faults: true,
        crashes: true,
        singles: true,
        moves: true,
        ..Trouble::default()
    };
    let mut settled = 0;
    play_all(trouble, |world| settled += world.books().settled());
    assert!(!is_whole() || settled > 5, "{settled} were let go");
}

#[test]
fn everything_at_once_changes_no_rule() {
    let seeds = many_seeds();
    let few = if is_whole() { 0..PACED_SEEDS } else { seeds };
    play_some(few, Trouble::ALL, |_| {});
}

#[test]
fn everything_at_once_changes_no_rule_on_postgres() {
    let seeds = many_seeds();
    let few = if is_whole() { 0..POSTGRES_SEEDS } else { seeds };
    let trouble = Trouble {
        postgres: true,
        ..Trouble::ALL
    };
    play_some(few, trouble, |_| {});
}

/// In production several processes share PostgreSQL alone. The statements are the same on both.
#[test]
fn two_replicas_change_no_rule() {
    let seeds = many_seeds();
    let few = if is_whole() { 0..REPLICA_SEEDS } else { seeds };
    let trouble = Trouble {
        replicas: true,
        ..Trouble::ALL
    };
    play_some(few, trouble, |_| {});
}

#[test]
fn two_replicas_change_no_rule_on_postgres() {
    let seeds = many_seeds();
    let few = if is_whole() {
        0..POSTGRES_REPLICA_SEEDS
    } else {
        seeds
    };
    let trouble = Trouble {
        postgres: true,
        replicas: true,
        ..Trouble::ALL
    };
    play_some(few, trouble, |_| {});
}
