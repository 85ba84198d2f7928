//! Random lives of a device, with honest and hostile messages, wrong bytes, faults and power cuts
//! in any order.

use std::collections::{BTreeMap, BTreeSet};

use device_ota_protocol::Slot;
use device_ota_protocol::agent::{Input, Output, PersistentState};
use device_ota_protocol::digest::Digest;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::messages::{ErrorCode, Offer, Progress};
use device_ota_protocol::objects::{Action, CommandKind, Mode};
use device_ota_protocol::topics::{Down, Up};
use proptest::prelude::*;

use crate::harness::{Device, IMAGE_SIZE, Service, image_of, online};

const EVIL: &str = "6.6.6";
const VERSIONS: [&str; 4] = ["1.9.0", "2.0.0", "2.1.0", "2.2.0"];

/// One thing that happens to a device.
#[derive(Debug, Clone)]
enum Event {
    Honest {
        version: usize,
        level: u64,
        update: u8,
        attempt: u32,
        stage: bool,
        rollback: bool,
    },
    ReleaseForged,
    AssignmentForged,
    ReleaseSwapped,
    AnotherDevice,
    OldNonce,
    Replay(prop::sample::Index),
    Command(bool),
    Garbage(Vec<u8>),
    Reply,
    Bytes(u64),
    Image {
        right: bool,
    },
    DownloadFailed,
    UrlsExpired,
    Installed(bool),
    Health(bool),
    Battery(u8),
    UserDefers,
    Tick(i64),
    PowerCut,
    Booted(bool),
    Connect,
    Disconnect,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..4_usize, 0..4_u64, 0..3_u8, 1..3_u32, any::<bool>(), any::<bool>()).prop_map(
            |(version, level, update, attempt, stage, rollback)| Event::Honest {
                version, level, update, attempt, stage, rollback,
            }
        ),
        1 => Just(Event::ReleaseForged),
        1 => Just(Event::AssignmentForged),
        1 => Just(Event::ReleaseSwapped),
        1 => Just(Event::AnotherDevice),
        1 => Just(Event::OldNonce),
        2 => any::<prop::sample::Index>().prop_map(Event::Replay),
        2 => any::<bool>().prop_map(Event::Command),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Event::Garbage),
        2 => Just(Event::Reply),
        3 => (0..=IMAGE_SIZE + 5).prop_map(Event::Bytes),
        6 => prop::bool::weighted(0.8).prop_map(|right| Event::Image { right }),
        1 => Just(Event::DownloadFailed),
        1 => Just(Event::UrlsExpired),
        6 => prop::bool::weighted(0.8).prop_map(Event::Installed),
        6 => prop::bool::weighted(0.7).prop_map(Event::Health),
        1 => (0..100_u8).prop_map(Event::Battery),
        1 => Just(Event::UserDefers),
        2 => (0..100_000_i64).prop_map(Event::Tick),
        4 => Just(Event::PowerCut),
        1 => any::<bool>().prop_map(Event::Booted),
        1 => Just(Event::Connect),
        1 => Just(Event::Disconnect),
    ]
}

/// A device, and what its service has said so far.
struct Life {
    service: Service,
    device: Device,
    said: Vec<Vec<u8>>,
}

impl Life {
    fn new() -> Self {
        let (service, mut device) = online();
        device.parts.by_itself = false;
        Self {
            service,
            device,
            said: Vec::new(),
        }
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Honest { .. }
            | Event::ReleaseForged
            | Event::AssignmentForged
            | Event::ReleaseSwapped
            | Event::AnotherDevice
            | Event::OldNonce => self.offered(event),
            Event::Replay(which) => {
                if !self.said.is_empty() {
                    let bytes = which.get(&self.said).clone();
                    self.device.receive(Down::Offer, &bytes);
                }
            }
            Event::Command(cancel) => {
                let kind = if *cancel {
                    CommandKind::Cancel
                } else {
                    CommandKind::Activate
                };
                let command = self.service.command(kind, "upd_1");
                self.device.receive(Down::Command, &command);
            }
            Event::Garbage(bytes) => {
                for down in [Down::Offer, Down::Command, Down::Reply] {
                    self.device.receive(down, bytes);
                }
            }
            Event::Reply => {
                let reply = self.service.reply(&self.device.nonce(), self.device.now);
                self.device.receive(Down::Reply, &reply);
            }
            other => self.machine(other),
        }
    }

    fn offered(&mut self, event: &Event) {
        let evil = Keypair::from_seed([66; 32]);
        let mut release = Service::release(EVIL, 9);
        let nonce = Some(self.device.nonce());
        if let Event::Honest { version, level, .. } = event {
            release = Service::release(VERSIONS[*version], *level);
        }
        let mut assignment = self.service.assign(&release, nonce);
        let honest = self.service.offer(&release, &assignment);
        let offer = match event {
            Event::Honest {
                update,
                attempt,
                stage,
                rollback,
                ..
            } => {
                assignment.update_id = format!("upd_{update}");
                assignment.attempt = *attempt;
                assignment.mode = if *stage { Mode::Stage } else { Mode::Install };
                assignment.action = if *rollback {
                    Action::Rollback
                } else {
                    Action::Update
                };
                assignment.requires.min_battery_percent = Some(20);
                self.service.offer(&release, &assignment)
            }
            Event::ReleaseForged => Offer {
                release: Service::signed_by(&evil, &release),
                ..honest
            },
            Event::AssignmentForged => Offer {
                assignment: Service::signed_by(&evil, &assignment),
                ..honest
            },
            Event::ReleaseSwapped => {
                let good = Service::release("2.1.0", 1);
                let assignment = self.service.assign(&good, Some(self.device.nonce()));
                self.service.offer(&release, &assignment)
            }
            Event::AnotherDevice => {
                assignment.device_id = "frame-2".parse().expect("an id");
                self.service.offer(&release, &assignment)
            }
            _ => {
                assignment.nonce = Some("of another check".into());
                self.service.offer(&release, &assignment)
            }
        };
        let bytes = offer.to_bytes();
        self.device.receive(Down::Offer, &bytes);
        self.said.push(bytes);
    }

    fn machine(&mut self, event: &Event) {
        let device = &mut self.device;
        match event {
            Event::Bytes(bytes_done) => device.feed(Input::Downloaded {
                bytes_done: *bytes_done,
            }),
            Event::Image { right } => {
                let wanted = device.done.iter().rev().find_map(|output| match output {
                    Output::StartDownload(download) => Some(download.sha256),
                    _ => None,
                });
                let right = wanted.filter(|_| *right);
                let sha256 = right.unwrap_or_else(|| image_of(EVIL));
                device.feed(Input::ImageReady {
                    size: IMAGE_SIZE,
                    sha256,
                });
            }
            Event::DownloadFailed => device.feed(Input::DownloadFailed {
                code: ErrorCode::DownloadFailed,
                message: "reset",
            }),
            Event::UrlsExpired => device.feed(Input::UrlsExpired),
            Event::Installed(well) => device.feed(Input::Installed(well.then_some(()).ok_or("io"))),
            Event::Health(well) => {
                device.feed(Input::HealthChecked(well.then_some(()).ok_or("no network")));
            }
            Event::Battery(percent) => device.feed(Input::Conditions {
                battery_percent: Some(f64::from(*percent)),
                free_storage_bytes: None,
            }),
            Event::UserDefers => device.feed(Input::UserDeferred { retry_after_s: 60 }),
            Event::Tick(seconds) => device.pass(*seconds),
            Event::PowerCut => device.power_cycle(),
            Event::Booted(a) => {
                let slot = if *a { Slot::A } else { Slot::B };
                device.feed(Input::Booted {
                    slot,
                    fell_back: false,
                });
                device.connect();
            }
            Event::Connect => device.connect(),
            Event::Disconnect => device.feed(Input::Disconnected),
            _ => {}
        }
    }
}

/// What must hold of everything a device ever did, in the order it did it.
fn assert_honest(done: &[Output]) {
    let legitimate: BTreeSet<Digest> = VERSIONS.map(image_of).into();
    let mut persisted: Option<&PersistentState> = None;
    let mut reports: BTreeMap<(String, u32), Progress> = BTreeMap::new();
    for output in done {
        match output {
            Output::StartDownload(download) => assert!(legitimate.contains(&download.sha256)),
            Output::Install { sha256, slot, .. } => {
                assert!(legitimate.contains(sha256));
                let state = persisted.expect("written down before");
                assert_ne!(*slot, state.active, "never the slot to fall back to");
            }
            Output::Persist(state) => {
                if let Some(before) = persisted {
                    assert!(before.seq <= state.seq);
                    assert!(before.security_floor <= state.security_floor);
                }
                // Another update in between: the device has but one memory, and counts anew.
                let own = |state: &PersistentState| {
                    let report = &state.update.as_ref()?.report;
                    Some((report.update_id.clone(), report.attempt))
                };
                if persisted.and_then(own) != own(state) {
                    reports.clear();
                }
                persisted = Some(state);
            }
            Output::Publish {
                up: Up::Progress,
                payload,
            } => {
                let report = Progress::parse(payload).expect("a valid report");
                let key = (report.update_id.clone(), report.attempt);
                let own = persisted.and_then(|s| s.update.as_ref());
                if own.is_some_and(|own| own.is(&key.0, key.1)) {
                    let own = own.map_or(0, |own| own.report.seq);
                    assert!(report.seq <= own, "published before it was written down");
                    if let Some(last) = reports.get(&key) {
                        let again = last.seq == report.seq && *last == report;
                        assert!(
                            last.seq < report.seq || again || report.seq == 1,
                            "{report:?}"
                        );
                    }
                    reports.insert(key, report);
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_device_stays_honest_whatever_happens(
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        let mut life = Life::new();
        for event in &events {
            life.happens(event);
            let state = life.device.agent.state();
            let text = serde_json::to_string(state).expect("json");
            let restored: PersistentState = serde_json::from_str(&text).expect("state");
            prop_assert_eq!(&restored, state, "nothing is lost on the way to flash");
        }
        assert_honest(&life.device.done);
    }

    #[test]
    fn whatever_happened_a_good_update_still_goes_through(
        events in prop::collection::vec(any_event(), 1..40),
    ) {
        let mut life = Life::new();
        for event in &events {
            life.happens(event);
        }
        let Life { mut service, mut device, .. } = life;
        device.parts.by_itself = true;
        device.power_cycle();
        device.power_cycle();
        device.connect();
        device.feed(Input::Conditions { battery_percent: None, free_storage_bytes: None });
        let release = Service::release("9.0.0", 9);
        let mut assignment = service.assign(&release, Some(device.nonce()));
        assignment.update_id = "upd_last".into();
        assignment.expires_at = device.now + crate::harness::hours(1);
        device.take(&service.offer(&release, &assignment));
        prop_assert_eq!(device.agent.running_version(), "9.0.0");
    }
}
