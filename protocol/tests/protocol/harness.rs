//! A service with its keys, and a device around an agent: disk, boot loader and link, with a power
//! switch that can be pulled between any two things the agent asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use device_ota_protocol::Slot;
use device_ota_protocol::agent::{
    Agent, Config, Identity, Ignored, Image, Input, Output, PersistentState,
};
use device_ota_protocol::digest::Digest;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::messages::{Check, ErrorCode, Offer, Phase, Progress, Reply};
use device_ota_protocol::objects::{
    Action, Assignment, Command, CommandKind, Kind, Mode, Release, Requires, Root, SignedObject,
    TimeStatement, Timeouts, seal,
};
use device_ota_protocol::topics::{Down, Up};
use jiff::{SignedDuration, Timestamp};

pub(crate) const DEVICE: &str = "frame-1";
pub(crate) const MODEL: &str = "SF-100";
pub(crate) const IMAGE_SIZE: u64 = 1000;

/// The digest of the image of a version.
pub(crate) fn image_of(version: &str) -> Digest {
    Digest::of(version.as_bytes())
}

pub(crate) fn start() -> Timestamp {
    "2026-11-01T12:00:00Z".parse().expect("a time")
}

pub(crate) fn hours(n: i64) -> SignedDuration {
    SignedDuration::from_hours(n)
}

/// The service's end: its keys, and the numbers it gives.
pub(crate) struct Service {
    pub(crate) root_key: Keypair,
    pub(crate) release_key: Keypair,
    pub(crate) dispatch_key: Keypair,
    pub(crate) root: Arc<Root>,
    pub(crate) seq: u64,
}

impl Service {
    pub(crate) fn new() -> Self {
        let [root_key, release_key, dispatch_key] = [1, 2, 3].map(|n| Keypair::from_seed([n; 32]));
        let root = Root::single(
            1,
            "2036-01-01T00:00:00Z".parse().expect("a time"),
            root_key.public(),
            release_key.public(),
            dispatch_key.public(),
        );
        Self {
            root_key,
            release_key,
            dispatch_key,
            root: Arc::new(root),
            seq: 0,
        }
    }

    pub(crate) fn release(version: &str, security_version: u64) -> Release {
        Release {
            firmware_id: "fw".into(),
            name: "Smart Frame Firmware".into(),
            version: version.into(),
            security_version,
            device_model: MODEL.into(),
            manufacturer: "Acme".into(),
            hw_revisions: Vec::new(),
            format: "bin".into(),
            size: IMAGE_SIZE,
            sha256: image_of(version),
            kind: Kind::Feature,
            issued_at: start(),
        }
    }

    /// An assignment of the release, with the next sequence number.
    pub(crate) fn assign(&mut self, release: &Release, nonce: Option<String>) -> Assignment {
        self.seq += 1;
        let bytes = seal(release, &self.release_key).expect("a release").payload;
        Assignment {
            device_id: DEVICE.parse().expect("an id"),
            update_id: "upd_1".into(),
            campaign_id: Some("cmp_1".into()),
            attempt: 1,
            action: Action::Update,
            seq: self.seq,
            release_sha256: Digest::of(&bytes),
            urls: vec!["http://localhost/image".into()],
            urls_expire_at: None,
            not_before: None,
            expires_at: start() + hours(24),
            nonce,
            mode: Mode::Install,
            requires: Requires::default(),
            timeouts: Timeouts::default(),
        }
    }

    pub(crate) fn offer(&self, release: &Release, assignment: &Assignment) -> Offer {
        Offer {
            release: Self::signed_by(&self.release_key, release),
            assignment: Self::signed_by(&self.dispatch_key, assignment),
            permit: None,
        }
    }

    pub(crate) fn signed_by<T: SignedObject>(
        key: &Keypair,
        object: &T,
    ) -> device_ota_protocol::dsse::Envelope {
        seal(object, key).expect("valid objects")
    }

    pub(crate) fn command(&mut self, command: CommandKind, update_id: &str) -> Vec<u8> {
        self.seq += 1;
        let command = Command {
            device_id: DEVICE.parse().expect("an id"),
            update_id: update_id.into(),
            seq: self.seq,
            command,
            expires_at: start() + hours(24),
        };
        Self::signed_by(&self.dispatch_key, &command).to_json()
    }

    pub(crate) fn reply(&self, nonce: &str, now: Timestamp) -> Vec<u8> {
        let time = TimeStatement {
            now,
            nonce: nonce.into(),
        };
        Reply::offer_follows(Some(nonce.into()), 3600)
            .with_time(Self::signed_by(&self.dispatch_key, &time))
            .to_bytes()
    }
}

/// How the boot loader picks a slot.
#[derive(Debug, Clone, Copy)]
struct BootLoader {
    kept: Slot,
    trial: Option<(Slot, u8)>,
}

impl BootLoader {
    /// The slot to start, and whether a trial was given up.
    fn pick(&mut self) -> (Slot, bool) {
        match self.trial {
            Some((slot, tries)) if tries > 0 => {
                self.trial = Some((slot, tries - 1));
                (slot, false)
            }
            Some(_) => {
                self.trial = None;
                (self.kept, true)
            }
            None => (self.kept, false),
        }
    }
}

/// How the device's parts behave.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Whether the driver answers what it is asked by itself.
    pub(crate) by_itself: bool,
    pub(crate) new_image_boots: bool,
    pub(crate) new_image_is_well: bool,
    /// Starts of a slot on trial before the boot loader gives it up.
    pub(crate) tries: u8,
}

pub(crate) struct Device {
    pub(crate) agent: Agent,
    pub(crate) now: Timestamp,
    pub(crate) parts: Parts,
    pub(crate) connected: bool,
    config: Config,
    flash: String,
    boot_loader: BootLoader,
    connections: u8,
    /// Everything that was asked for, in order.
    pub(crate) done: Vec<Output>,
    /// Things done before the power is cut.
    pub(crate) cut_after: Option<usize>,
}

/// An input that owns its data, to be queued.
enum Event {
    Downloaded(u64),
    ImageReady(Digest),
    Installed,
    Health(bool),
}

impl Device {
    pub(crate) fn new(service: &Service) -> Self {
        Self::with(service, Config::default(), "2.0.0", 1)
    }

    pub(crate) fn with(service: &Service, config: Config, version: &str, level: u64) -> Self {
        let image = Image {
            version: version.into(),
            sha256: image_of(version),
            security_version: level,
            confirmed: true,
        };
        let state = PersistentState::born(Arc::clone(&service.root), image);
        Self {
            flash: serde_json::to_string(&state).expect("state"),
            agent: Agent::new(identity(), config, state),
            now: start(),
            parts: Parts {
                by_itself: true,
                new_image_boots: true,
                new_image_is_well: true,
                tries: 3,
            },
            connected: false,
            config,
            boot_loader: BootLoader {
                kept: Slot::A,
                trial: None,
            },
            connections: 0,
            done: Vec::new(),
            cut_after: None,
        }
    }

    /// Feeds one input and does all that follows from it.
    pub(crate) fn feed(&mut self, input: Input<'_>) {
        let outputs = self.agent.handle(self.now, input);
        let mut events = VecDeque::new();
        if !self.perform(outputs, &mut events) {
            return self.power_cycle();
        }
        while let Some(event) = events.pop_front() {
            let outputs = self.answer(&event);
            if !self.perform(outputs, &mut events) {
                return self.power_cycle();
            }
        }
    }

    fn answer(&mut self, event: &Event) -> Vec<Output> {
        let input = match event {
            Event::Downloaded(bytes_done) => Input::Downloaded {
                bytes_done: *bytes_done,
            },
            Event::ImageReady(sha256) => Input::ImageReady {
                size: IMAGE_SIZE,
                sha256: *sha256,
            },
            Event::Installed => Input::Installed(Ok(())),
            Event::Health(true) => Input::HealthChecked(Ok(())),
            Event::Health(false) => Input::HealthChecked(Err("no network")),
        };
        self.agent.handle(self.now, input)
    }

    /// Does what was asked, until the device restarts or loses power: then `false`.
    fn perform(&mut self, outputs: Vec<Output>, events: &mut VecDeque<Event>) -> bool {
        for output in outputs {
            if let Some(left) = &mut self.cut_after {
                if *left == 0 {
                    self.cut_after = None;
                    return false;
                }
                *left -= 1;
            }
            self.done.push(output.clone());
            match output {
                Output::Persist(state) => {
                    self.flash = serde_json::to_string(&*state).expect("state");
                }
                Output::Confirm { slot } => {
                    self.boot_loader.kept = slot;
                    self.boot_loader.trial = None;
                }
                Output::Reboot { slot } => {
                    let tries = if slot == self.boot_loader.kept {
                        1
                    } else if self.parts.new_image_boots {
                        self.parts.tries
                    } else {
                        0
                    };
                    self.boot_loader.trial = Some((slot, tries));
                    if self.parts.by_itself {
                        return false;
                    }
                }
                Output::StartDownload(download) if self.parts.by_itself => {
                    events.push_back(Event::Downloaded(download.offset.max(IMAGE_SIZE / 2)));
                    events.push_back(Event::ImageReady(download.sha256));
                }
                Output::Install { .. } if self.parts.by_itself => {
                    events.push_back(Event::Installed);
                }
                Output::CheckHealth if self.parts.by_itself => {
                    events.push_back(Event::Health(self.parts.new_image_is_well));
                }
                _ => {}
            }
        }
        true
    }

    /// Loses all that is not in flash and starts again; comes back online if it was.
    pub(crate) fn power_cycle(&mut self) {
        let online = std::mem::take(&mut self.connected);
        let state = serde_json::from_str(&self.flash).expect("state");
        self.agent = Agent::new(identity(), self.config, state);
        let (slot, fell_back) = self.boot_loader.pick();
        self.feed(Input::Booted { slot, fell_back });
        if online && !self.connected {
            self.connect();
        }
    }

    pub(crate) fn boot(&mut self) {
        let slot = self.boot_loader.kept;
        self.feed(Input::Booted {
            slot,
            fell_back: false,
        });
    }

    pub(crate) fn connect(&mut self) {
        self.connected = true;
        self.connections = self.connections.wrapping_add(1);
        let nonce = [self.connections; 16];
        self.feed(Input::Connected { nonce });
    }

    /// Boots, connects and learns the time.
    pub(crate) fn come_online(&mut self, service: &Service) {
        self.boot();
        self.connect();
        let reply = service.reply(&self.nonce(), self.now);
        self.receive(Down::Reply, &reply);
    }

    pub(crate) fn receive(&mut self, down: Down, payload: &[u8]) {
        self.feed(Input::Message { down, payload });
    }

    pub(crate) fn take(&mut self, offer: &Offer) {
        self.receive(Down::Offer, &offer.to_bytes());
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.feed(Input::Tick);
    }

    pub(crate) fn checks(&self) -> Vec<Check> {
        self.published(Up::Check)
            .map(|payload| Check::parse(payload).expect("valid checks"))
            .collect()
    }

    pub(crate) fn nonce(&self) -> String {
        let last = self.checks().pop().expect("a check was sent");
        last.nonce.expect("checks bear nonces")
    }

    pub(crate) fn reports(&self) -> Vec<Progress> {
        self.published(Up::Progress)
            .map(|payload| Progress::parse(payload).expect("valid reports"))
            .collect()
    }

    pub(crate) fn last(&self) -> Progress {
        self.reports().pop().expect("something was reported")
    }

    /// Phase and error of the last report.
    pub(crate) fn outcome(&self) -> (Phase, Option<ErrorCode>) {
        let last = self.last();
        (last.phase, last.error.map(|error| error.code))
    }

    pub(crate) fn phases(&self) -> Vec<Phase> {
        self.reports().iter().map(|report| report.phase).collect()
    }

    pub(crate) fn ignored(&self) -> Vec<Ignored> {
        let why = |output: &Output| match output {
            Output::Ignored(why) => Some(*why),
            _ => None,
        };
        self.done.iter().filter_map(why).collect()
    }

    pub(crate) fn downloads(&self) -> Vec<u64> {
        let offset = |output: &Output| match output {
            Output::StartDownload(download) => Some(download.offset),
            _ => None,
        };
        self.done.iter().filter_map(offset).collect()
    }

    fn published(&self, wanted: Up) -> impl Iterator<Item = &[u8]> {
        self.done.iter().filter_map(move |output| match output {
            Output::Publish { up, payload } if *up == wanted => Some(payload.as_slice()),
            _ => None,
        })
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        manufacturer: Some("Acme".into()),
        hw_revision: Some("r2".into()),
        ..Identity::new(DEVICE.parse().expect("an id"), MODEL)
    }
}

/// A device that is online, and its service.
pub(crate) fn online() -> (Service, Device) {
    let service = Service::new();
    let mut device = Device::new(&service);
    device.come_online(&service);
    (service, device)
}
