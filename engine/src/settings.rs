//! Settings of the engine, checked before they come here.

use device_ota_domain::bandwidth::Budgets;
use jiff::SignedDuration;

/// How the engine behaves; every figure has its unit.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What devices see in download URLs, without a slash at the end.
    pub public_url: String,
    /// Threshold of a campaign that names none, in percent.
    pub failure_threshold_percent: f64,
    /// A device that is silent for longer loses its slot.
    pub lease: SignedDuration,
    /// Updates and rollbacks in flight at the same time, of all campaigns and single devices; `None`: no limit.
    pub max_in_flight: Option<u64>,
    /// Bytes a second that offers may bring about, by line.
    pub budgets: Budgets,
    /// A device that is away for longer is told of, once an absence.
    pub offline_after: SignedDuration,
    /// A rollback that is not done this long after it was made ends as failed.
    pub rollback_timeout: SignedDuration,
    /// How often the heartbeats of devices are read for campaigns that have criteria of health, in seconds.
    pub health_seconds: u32,
    /// An offer that nobody answered is said again after this.
    pub offer_again: SignedDuration,
    /// How long a download URL serves (PRD, E1-US4: one hour).
    pub url_lifetime: SignedDuration,
    /// When a device with nothing to do shall ask again, in seconds.
    pub next_check_seconds: u64,
    /// How long heartbeats stay in the history; zero keeps none.
    pub heartbeat_retention: SignedDuration,
    /// The service's own user at an external broker; no device may be called so.
    pub broker_user: Option<String>,
    /// How often the planner looks without being woken.
    pub tick: std::time::Duration,
    /// How long a device's verifier is believed after it was read: as long as another process may need to take one back.
    /// `None`: until this one does, where no other can.
    pub credentials_believed: Option<SignedDuration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            public_url: String::new(),
            failure_threshold_percent: 10.0,
            lease: SignedDuration::from_mins(5),
            max_in_flight: None,
            budgets: Budgets::default(),
            offline_after: SignedDuration::from_mins(5),
            rollback_timeout: SignedDuration::from_hours(6),
            health_seconds: 60,
            offer_again: SignedDuration::from_secs(30),
            url_lifetime: SignedDuration::from_hours(1),
            next_check_seconds: 3_600,
            heartbeat_retention: SignedDuration::from_hours(30 * 24),
            broker_user: None,
            tick: std::time::Duration::from_secs(1),
            credentials_believed: Some(SignedDuration::from_secs(5)),
        }
    }
}
