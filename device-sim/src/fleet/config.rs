//! What a fleet is made of and what is to become of it.

use std::path::PathBuf;
use std::time::Duration;

use device_ota_protocol::topics::Prefix;

use super::Until;
use crate::api::Rollout;
use crate::faults::{FaultPlan, Faults, Flaw, Share};
use crate::habits::Habits;
use crate::mqtt;

/// Which MQTT a fleet speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// All 3.1.1.
    V3,
    /// All 5.
    V5,
    /// One half each.
    Mix,
}

/// A fleet and what is to become of it. [`FleetConfig::new`] has a value for everything.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Where the service's HTTP interface is, such as `http://127.0.0.1:8216`.
    pub http: String,
    /// Where devices connect to, as host and port; with TLS behind `mqtts://`.
    pub mqtt: String,
    /// A file of the authorities that are believed, PEM; `None`: the system's, and no `mqtts://`.
    pub ca: Option<PathBuf>,
    /// The administrator's key, with which the fleet registers itself.
    pub admin_key: String,
    /// How many devices.
    pub devices: usize,
    /// What their names begin with.
    pub prefix: String,
    /// Their model.
    pub model: String,
    /// Its maker.
    pub manufacturer: Option<String>,
    /// Its hardware revision.
    pub hw_revision: Option<String>,
    /// The group they are registered in.
    pub group: String,
    /// The version they are born with.
    pub version: String,
    /// A file whose bytes are the image they are born with; without it the digest is made up.
    pub image: Option<PathBuf>,
    /// Levels before each device's topics.
    pub topics: Prefix,
    /// What everything random follows from.
    pub seed: u64,
    /// Where secrets and states of devices are kept between runs.
    pub state_dir: Option<PathBuf>,
    /// Which MQTT they speak.
    pub mqtt_versions: Versions,
    /// How many take images in MQTT chunks.
    pub chunks: Share,
    /// HTTP downloads at a time.
    pub downloads: usize,
    /// Connections begun a second.
    pub connect_rate: u32,
    /// What devices do when nothing is wrong.
    pub habits: Habits,
    /// What is wrong.
    pub faults: FaultPlan,
    /// An image to roll out once all are connected.
    pub rollout: Option<Rollout>,
    /// A campaign to watch.
    pub campaign: Option<String>,
    /// When to end.
    pub until: Until,
    /// When to end at the latest.
    pub timeout: Option<Duration>,
    /// The version that devices without a flaw are to end on.
    pub expect: Option<String>,
    /// The share of them that must, in percent.
    pub expect_share: f64,
}

impl FleetConfig {
    /// Five hundred good devices that live until they are stopped.
    pub fn new(http: &str, mqtt: &str, admin_key: &str) -> Self {
        Self {
            http: http.to_owned(),
            mqtt: mqtt.to_owned(),
            ca: None,
            admin_key: admin_key.to_owned(),
            devices: 500,
            prefix: "sim-".to_owned(),
            model: "SF-100".to_owned(),
            manufacturer: None,
            hw_revision: None,
            group: "device-sim".to_owned(),
            version: "1.0.0".to_owned(),
            image: None,
            topics: Prefix::default(),
            seed: 1,
            state_dir: None,
            mqtt_versions: Versions::Mix,
            chunks: Share::NONE,
            downloads: 64,
            connect_rate: 1_000,
            habits: Habits::default(),
            faults: FaultPlan::default(),
            rollout: None,
            campaign: None,
            until: Until::Stopped,
            timeout: None,
            expect: None,
            expect_share: 100.0,
        }
    }

    /// The name of a device by its number.
    pub fn device_id(&self, index: usize) -> String {
        format!("{}{:05}", self.prefix, index + 1)
    }

    /// Whether a device with these faults can end on the new version.
    pub(super) fn can_update(&self, faults: Faults) -> bool {
        match faults.flaw {
            None => true,
            Some(Flaw::Silent) => self.habits.silent_for.is_some(),
            Some(_) => false,
        }
    }
}

impl Versions {
    /// What the device with this number speaks.
    pub(super) fn of(self, index: usize) -> mqtt::Version {
        match self {
            Self::V3 => mqtt::Version::V3,
            Self::Mix if index.is_multiple_of(2) => mqtt::Version::V3,
            Self::V5 | Self::Mix => mqtt::Version::V5,
        }
    }
}
