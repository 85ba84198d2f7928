//! The device's own logic, as one state machine that does no I/O itself. A driver feeds it what
//! happens ([`Input`]) and does what it answers ([`Output`]), in order; the time comes in with each
//! input. Whatever the driver wrote at the last [`Output::Persist`] is enough to go on after a
//! power cut at any moment.
//!
//! ```text
//!             take ┌──────────┐
//!  offer ─────────►│Downloading├──image_ready──►Installing──installed──►┬──────────────►Rebooting
//!    │             └────┬─────┘                                         └►Staged──activate──►│
//!    │ defer            │ defer, cancel, fail                                             booted
//!    ▼                  ▼                                                                    ▼
//!  Deferred          Finished◄──booted (old slot)──FallingBack◄──health_checked(Err)──────Trial
//!                       ▲                                                                    │
//!                       └───────────────────────health_checked(Ok)──────────────────────────┘
//! ```
//!
//! How a driver goes about it:
//!
//! ```
//! use std::sync::Arc;
//! use device_ota_protocol::agent::{Agent, Config, Identity, Image, Input, Output, PersistentState};
//! use device_ota_protocol::digest::Digest;
//! use device_ota_protocol::keys::Keypair;
//! use device_ota_protocol::objects::Root;
//! use device_ota_protocol::topics::Prefix;
//! use device_ota_protocol::Slot;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Keypair::from_seed([1; 32]).public();
//! let root = Root::single(1, "2036-01-01T00:00:00Z".parse()?, key, key, key);
//! let factory = Image {
//!     version: "2.0.0".into(),
//!     sha256: Digest::of(b"image 2.0.0"),
//!     security_version: 1,
//!     confirmed: true,
//! };
//! // At every later start this is what `Output::Persist` wrote.
//! let state = PersistentState::born(Arc::new(root), factory);
//! let identity = Identity::new("frame-1".parse()?, "SF-100");
//! let mut agent = Agent::new(identity, Config::default(), state);
//!
//! let now = "2026-11-01T12:00:00Z".parse()?; // from the device's clock
//! let mut outputs = agent.handle(now, Input::Booted { slot: Slot::A, fell_back: false });
//! // … connect, subscribe to `prefix.down_all(..)`, then:
//! outputs.extend(agent.handle(now, Input::Connected { nonce: [7; 16] }));
//!
//! let prefix = Prefix::default();
//! for output in outputs {
//!     match output {
//!         Output::Publish { up, payload } => {
//!             let topic = prefix.up(agent.device_id(), up);
//!             assert_eq!(topic, "ota/v1/frame-1/up/check");
//!             assert!(payload.starts_with(br#"{"version":"2.0.0","nonce":""#));
//!         }
//!         Output::Persist(state) => { /* write to a new file, sync, rename over the old one */ }
//!         Output::StartDownload(download) => { /* fetch; then `Input::ImageReady` */ }
//!         Output::AbortDownload => { /* stop fetching */ }
//!         Output::Install { slot, .. } => { /* write the slot; then `Input::Installed` */ }
//!         Output::Reboot { slot } => { /* try that slot once */ }
//!         Output::CheckHealth => { /* examine; then `Input::HealthChecked` */ }
//!         Output::Confirm { slot } => { /* tell the boot loader to keep it */ }
//!         Output::Ignored(why) => { /* log */ }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod command;
mod effects;
mod install;
mod io;
mod link;
mod offer;
mod state;
mod weigh;

pub use io::{Download, Ignored, Input, Output};
pub use state::{
    Image, Job, MAX_USED_PERMITS, Partial, PersistentState, Stage, UpdateRecord, UsedPermit,
};

use jiff::{SignedDuration, Timestamp};

use crate::dsse::Envelope;
use crate::ids::DeviceId;
use crate::messages::{Heartbeat, Phase, Progress, ReportedError};
use crate::topics::{Down, Up};
use crate::wire::Slot;
use effects::Effects;
use link::Link;

/// What the device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub device_id: DeviceId,
    /// Its model, as releases name it.
    pub device_model: String,
    /// Its maker; unknown takes a release of any.
    pub manufacturer: Option<String>,
    /// Its hardware revision; unknown takes only releases for every revision.
    pub hw_revision: Option<String>,
}

impl Identity {
    /// A device of a model of which nothing more is known.
    pub fn new(device_id: DeviceId, device_model: impl Into<String>) -> Self {
        Self {
            device_id,
            device_model: device_model.into(),
            manufacturer: None,
            hw_revision: None,
        }
    }
}

/// How an agent goes about its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Whether the time that comes in is right, by a clock the device trusts. If not, the agent
    /// goes by the signed time in replies.
    pub clock_trusted: bool,
    /// Seconds between checks while the service does not say otherwise.
    pub check_interval_s: u64,
    /// Least seconds between two checks on one connection.
    pub min_check_interval_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            clock_trusted: false,
            check_interval_s: 3600,
            min_check_interval_s: 10,
        }
    }
}

/// What the device has of what offers may require.
#[derive(Debug, Clone, Copy, Default)]
struct Conditions {
    battery_percent: Option<f64>,
    free_storage_bytes: Option<u64>,
}

/// One device. See the [module](self) for how to drive it.
#[derive(Debug, Clone)]
pub struct Agent {
    identity: Identity,
    config: Config,
    state: PersistentState,
    running: Slot,
    conditions: Conditions,
    link: Link,
    /// What to add to the time that comes in to have one that was signed.
    clock_offset: Option<SignedDuration>,
    /// When the stage last changed, as far as this run knows.
    stage_since: Option<Timestamp>,
    /// Time and bytes at the last download report; `None` while no download runs.
    download: Option<(Timestamp, u64)>,
}

impl Agent {
    /// An agent that goes on from `state`. It rests until [`Input::Booted`].
    pub fn new(identity: Identity, config: Config, state: PersistentState) -> Self {
        Self {
            identity,
            config,
            running: state.active,
            state,
            conditions: Conditions::default(),
            link: Link::default(),
            clock_offset: None,
            stage_since: None,
            download: None,
        }
    }

    /// Takes one input at the time `now` and says what to do. While one agent lives, `now` does
    /// not jump.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) -> Vec<Output> {
        let mut fx = Effects::default();
        self.stage_since.get_or_insert(now);
        match input {
            Input::Booted { slot, fell_back } => self.booted(now, slot, fell_back, &mut fx),
            Input::Connected { nonce } => self.connected(now, nonce, &mut fx),
            Input::Disconnected => self.link.disconnected(),
            Input::Message { down, payload } => self.message(now, down, payload, &mut fx),
            Input::Downloaded { bytes_done } => self.downloaded(now, bytes_done, &mut fx),
            Input::ImageReady { size, sha256 } => self.image_ready(now, size, sha256, &mut fx),
            Input::DownloadFailed { code, message } => {
                self.download_failed(now, code, message, &mut fx);
            }
            Input::UrlsExpired => self.urls_expired(now, &mut fx),
            Input::Installed(result) => self.installed(now, result, &mut fx),
            Input::HealthChecked(result) => self.health_checked(now, result, &mut fx),
            Input::Conditions {
                battery_percent,
                free_storage_bytes,
            } => {
                self.conditions = Conditions {
                    battery_percent,
                    free_storage_bytes,
                };
            }
            Input::UserDeferred { retry_after_s } => self.user_deferred(retry_after_s, &mut fx),
            Input::Root(next) => self.follow_root(next, &mut fx),
            Input::Tick => self.tick(now, &mut fx),
        }
        fx.into_outputs(&self.state)
    }

    /// The device's name.
    pub fn device_id(&self) -> &DeviceId {
        &self.identity.device_id
    }

    /// What the device is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What would be persisted now.
    pub fn state(&self) -> &PersistentState {
        &self.state
    }

    /// The slot that runs.
    pub fn running_slot(&self) -> Slot {
        self.running
    }

    /// The version that runs.
    pub fn running_version(&self) -> &str {
        let image = self.state.image(self.running);
        image.map_or("unknown", |image| &image.version)
    }

    /// The time by a clock the device trusts, if it has one.
    pub fn trusted_time(&self, now: Timestamp) -> Option<Timestamp> {
        if self.config.clock_trusted {
            return Some(now);
        }
        now.checked_add(self.clock_offset?).ok()
    }

    /// A heartbeat with all that the agent knows; the driver adds telemetry.
    pub fn heartbeat(&self) -> Heartbeat {
        let image = self.state.image(self.running);
        Heartbeat {
            version: self.running_version().to_owned(),
            slot: Some(self.running),
            confirmed: image.map(|image| image.confirmed),
            device_model: Some(self.identity.device_model.clone()),
            manufacturer: self.identity.manufacturer.clone(),
            hw_revision: self.identity.hw_revision.clone(),
            security_floor: Some(self.state.security_floor),
            ..Heartbeat::default()
        }
    }

    fn message(&mut self, now: Timestamp, down: Down, payload: &[u8], fx: &mut Effects) {
        match down {
            Down::Offer => self.offered(now, payload, fx),
            Down::Command => self.commanded(now, payload, fx),
            Down::Reply => self.replied(now, payload, fx),
            Down::Chunk { .. } => fx.ignored(Ignored::OutOfPlace),
        }
    }

    fn follow_root(&mut self, next: &Envelope, fx: &mut Effects) {
        match self.state.root.verify_chain(next) {
            Ok(root) => {
                self.state.root = root.into();
                fx.persist();
            }
            Err(_) => fx.ignored(Ignored::NotVerified),
        }
    }

    /// Puts the update at a stage.
    fn enter(&mut self, now: Timestamp, stage: Stage) {
        self.stage_since = Some(now);
        if let Some(record) = &mut self.state.update {
            record.stage = stage;
        }
    }

    /// The next report of the current update: remembered, and published if connected.
    fn report(&mut self, fx: &mut Effects, phase: Phase, fill: impl FnOnce(&mut Progress)) {
        let version = self.running_version().to_owned();
        let Some(record) = &mut self.state.update else {
            return;
        };
        let last = &record.report;
        let seq = last.seq.saturating_add(1);
        let mut next = Progress::new(last.update_id.clone(), last.attempt, seq, phase);
        next.version = Some(version);
        fill(&mut next);
        record.report = next;
        fx.persist();
        self.repeat_report(fx);
    }

    /// Says the last report once more, under the same number.
    fn repeat_report(&self, fx: &mut Effects) {
        if let Some(record) = &self.state.update
            && self.link.is_up()
        {
            fx.publish(Up::Progress, record.report.to_bytes());
        }
    }

    /// Ends the current update.
    fn finish(
        &mut self,
        now: Timestamp,
        phase: Phase,
        error: Option<ReportedError>,
        fx: &mut Effects,
    ) {
        self.enter(now, Stage::Finished);
        self.report(fx, phase, |report| report.error = error);
    }
}

/// Seconds from `then` to `now`, zero if `now` is the earlier.
fn elapsed_s(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0)
}
