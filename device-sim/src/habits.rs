//! How the devices of a fleet behave when nothing is wrong with them.

use std::time::Duration;

/// How the devices of a fleet behave when nothing is wrong with them.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Longest silence on a connection.
    pub keep_alive: Duration,
    /// Time between checks, while the service does not say otherwise.
    pub check_interval: Duration,
    /// How long a restart takes.
    pub reboot_time: Duration,
    /// How long it takes to write an image to its slot.
    pub install_time: Duration,
    /// Most bytes a second of one download.
    pub speed: Option<u64>,
    /// When batteries are charged and storage is freed.
    pub recover: Duration,
    /// When silent devices come back; never, if absent.
    pub silent_for: Option<Duration>,
    /// When devices that are offline at first come online.
    pub offline_for: Duration,
    /// How long the new image runs where it does not last.
    pub relapse_after: Duration,
    /// What kind of thing they say they are.
    pub device_type: String,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(30),
            keep_alive: Duration::from_mins(1),
            check_interval: Duration::from_mins(5),
            reboot_time: Duration::from_secs(2),
            install_time: Duration::from_secs(1),
            speed: None,
            recover: Duration::from_secs(20),
            silent_for: None,
            offline_for: Duration::from_secs(15),
            relapse_after: Duration::from_secs(5),
            device_type: "smart_frame".to_owned(),
        }
    }
}
