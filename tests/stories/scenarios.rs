//! The stories in `device-sim/scenarios/`, each played end to end against a service of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use device_sim::fleet::Unwatched;
use device_sim::scenario::{Outcome, Scenario};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::harness::{Options, Service};

/// Every file of the folder, by its name, as a test of its own; with `also` the case that it is played with beside
/// SQLite and the gateway.
macro_rules! scenarios {
    ($($name:ident $(, also $also:ident)?);+ $(;)?) => {
        const PLAYED: &[&str] = &[$(stringify!($name)),+];
        $(mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite_gateway() {
                super::play(stringify!($name), super::Options::sqlite_gateway()).await;
            }
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $also() {
                super::play(stringify!($name), super::Options::$also()).await;
            })?
        })+
    };
}

scenarios! {
    automatic_rollback, also postgres_mosquitto;
    bad_image_shows_later;
    blue_green, also postgres_mosquitto;
    campaign_rollback;
    canary;
    cancel_midway, also postgres_gateway;
    gate_fails;
    half_offline;
    hard_faults;
    immediate;
    low_battery_and_storage;
    lying_minority, also postgres_mosquitto;
    manual_gate;
    network_dies, also postgres_mosquitto;
    noisy_network;
    pause_and_resume;
    retries;
    schedule_over;
    scheduled;
    silent_devices, also postgres_gateway;
    staged;
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("device-sim/scenarios")
}

#[test]
fn every_file_is_played() {
    let files = std::fs::read_dir(folder()).unwrap();
    let files: BTreeSet<_> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_owned())
        .map(|name| name.into_string().unwrap())
        .collect();
    let played: BTreeSet<_> = PLAYED.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(files, played);
}

async fn play(name: &str, options: Options) {
    let scenario = Scenario::read(&folder().join(format!("{name}.toml"))).unwrap();
    let settings = scenario.settings();
    let options = settings.fold(options, |options, (setting, value)| {
        options.with(setting, value)
    });
    let service = Service::start(options).await;
    let outcome = run(scenario, &service).await;
    assert!(outcome.is_as_expected(), "{outcome}");
    println!("{outcome}");
}

/// On threads of its own, as if it were a process of its own; a test that is over before it does not wait for it.
async fn run(scenario: Scenario, service: &Service) -> Outcome {
    let service = device_sim::scenario::Service {
        http: service.admin().url(""),
        mqtt: service.mqtt(),
        admin_key: service.key().to_owned(),
        topics: device_ota_protocol::topics::Prefix::default(),
    };
    let (sender, outcome) = oneshot::channel();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let _ends_with_the_test = stop.drop_guard();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let played = runtime.block_on(scenario.play(&service, &mut Unwatched, stopped));
        let _ = sender.send(played);
    });
    outcome.await.unwrap().expect("the story can be played")
}
