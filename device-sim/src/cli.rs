//! The command line: flags and environment variables become a [`FleetConfig`].

mod service;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::api::{Rollout, Strategy};
use crate::faults::{FaultPlan, Share};
use crate::fleet::{FleetConfig, Until, Versions};
use crate::habits::Habits;
use crate::time::Time;

pub use service::ScenarioArgs;
use service::ServiceArgs;

/// What a rollout asks for where some devices are low on it: more than those have, and less than the others.
const FIT_BATTERY_PERCENT: u8 = 30;
const FIT_STORAGE_BYTES: u64 = 1_000_000;

/// Headings that keep `--help` readable.
const FLEET: &str = "Fleet";
const BEHAVIOUR: &str = "Behaviour";
const ENDING: &str = "Ending";

/// A fleet of simulated devices. Registers itself with the admin key, connects, takes updates, and
/// says at the end whether every device is where it should be: exit status 0 if so, 1 if not, 2 if
/// the service broke a promise, 3 if nothing could be run.
#[derive(Debug, Parser)]
#[command(
    name = "device-sim",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    fleet: FleetArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a story from a file: a fleet, its faults, a campaign, what its operator does, and how it has to end. Exit
    /// status 0 if it ended so, 1 if not, 2 if the service broke a promise, 3 if it could not be played.
    Scenario(ScenarioArgs),
}

/// A fleet, in flags.
#[derive(Debug, Args)]
struct FleetArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// How many devices.
    #[arg(long, default_value_t = 500, help_heading = FLEET)]
    devices: usize,
    /// What their names begin with.
    #[arg(long, default_value = "sim-", help_heading = FLEET)]
    prefix: String,
    /// Their model.
    #[arg(long, default_value = "SF-100", help_heading = FLEET)]
    model: String,
    /// Who makes the model.
    #[arg(long, help_heading = FLEET)]
    manufacturer: Option<String>,
    /// Revision of the hardware.
    #[arg(long, help_heading = FLEET)]
    hw_revision: Option<String>,
    /// What kind of thing they are.
    #[arg(long, default_value = "smart_frame", help_heading = FLEET)]
    device_type: String,
    /// The group they are registered in.
    #[arg(long, default_value = "device-sim", help_heading = FLEET)]
    group: String,
    /// The version they are born with.
    #[arg(long = "version", default_value = "1.0.0", help_heading = FLEET)]
    version_at_birth: String,
    /// A file with the image they are born with; `--rollout` uploads it too, so that there is
    /// something to roll back to.
    #[arg(long, help_heading = FLEET)]
    image: Option<PathBuf>,
    /// What everything random follows from.
    #[arg(long, default_value_t = 1, help_heading = FLEET)]
    seed: u64,
    /// A folder that keeps secrets and states of devices for the next run.
    #[arg(long, help_heading = FLEET)]
    state_dir: Option<PathBuf>,

    /// Which MQTT they speak.
    #[arg(long, value_enum, default_value_t = MqttVersion::Mix, help_heading = BEHAVIOUR)]
    mqtt_version: MqttVersion,
    /// Share that takes images in MQTT chunks instead of over HTTP.
    #[arg(long, default_value = "10%", help_heading = BEHAVIOUR)]
    chunks: Share,
    /// Most bytes a second of one download.
    #[arg(long, help_heading = BEHAVIOUR)]
    speed: Option<u64>,
    /// HTTP downloads at a time.
    #[arg(long, default_value_t = 64, help_heading = BEHAVIOUR)]
    downloads: usize,
    /// Connections begun a second.
    #[arg(long, default_value_t = 1_000, help_heading = BEHAVIOUR)]
    connect_rate: u32,
    /// Time between heartbeats.
    #[arg(long, default_value = "30s", help_heading = BEHAVIOUR)]
    heartbeat: Time,
    /// MQTT keep-alive.
    #[arg(long, default_value = "60s", help_heading = BEHAVIOUR)]
    keep_alive: Time,
    /// Time between checks, while the service does not say otherwise.
    #[arg(long, default_value = "5m", help_heading = BEHAVIOUR)]
    check_interval: Time,
    /// How long a restart takes.
    #[arg(long, default_value = "2s", help_heading = BEHAVIOUR)]
    reboot_time: Time,
    /// How long it takes to write an image to its slot.
    #[arg(long, default_value = "1s", help_heading = BEHAVIOUR)]
    install_time: Time,

    #[command(flatten)]
    faults: FaultPlan,

    /// Upload this image and roll it out to the fleet.
    #[arg(long, requires = "to_version", help_heading = ENDING)]
    rollout: Option<PathBuf>,
    /// The version of that image.
    #[arg(long, requires = "rollout", help_heading = ENDING)]
    to_version: Option<String>,
    /// How the fleet is divided. With `blue_green` everybody holds the image first, then all flip.
    #[arg(long, value_enum, default_value_t, requires = "rollout", help_heading = ENDING)]
    strategy: Strategy,
    /// Share of failures, in percent, above which it is all rolled back.
    #[arg(long, default_value_t = 10.0, help_heading = ENDING)]
    failure_threshold: f64,
    /// Watch a campaign, and end when it has ended.
    #[arg(long, conflicts_with = "rollout", help_heading = ENDING)]
    campaign: Option<String>,
    /// When to end: a version that every device should run, `campaign`, `idle` or `forever`.
    #[arg(long, help_heading = ENDING)]
    until: Option<Until>,
    /// When to end at the latest.
    #[arg(long, help_heading = ENDING)]
    timeout: Option<Time>,
    /// The version that devices without a flaw should end on.
    #[arg(long, help_heading = ENDING)]
    expect: Option<String>,
    /// Share of them that must, in percent.
    #[arg(long, default_value_t = 100.0, help_heading = ENDING)]
    expect_share: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MqttVersion {
    /// 3.1.1
    #[value(name = "3")]
    V3,
    /// 5
    #[value(name = "5")]
    V5,
    /// Half and half
    Mix,
}

impl Cli {
    fn service(&self) -> &ServiceArgs {
        match &self.command {
            Some(Command::Scenario(scenario)) => &scenario.service,
            None => &self.fleet.service,
        }
    }

    /// Whether the summary is to be JSON.
    pub fn json(&self) -> bool {
        self.service().json
    }

    /// Whether to print no progress.
    pub fn quiet(&self) -> bool {
        self.service().quiet
    }

    /// The story that was asked for, if it is one.
    pub fn scenario(&self) -> Option<&ScenarioArgs> {
        match &self.command {
            Some(Command::Scenario(scenario)) => Some(scenario),
            None => None,
        }
    }

    /// The fleet that was asked for.
    pub fn into_config(self) -> anyhow::Result<FleetConfig> {
        self.fleet.into_config()
    }
}

impl FleetArgs {
    fn into_config(self) -> anyhow::Result<FleetConfig> {
        let admin_key = self.service.read_admin_key()?;
        let rollout = self.rollout();
        let watched = self.campaign.is_some() || rollout.is_some();
        let until = self.until.clone().unwrap_or(if watched {
            Until::CampaignEnd
        } else {
            Until::Stopped
        });
        Ok(FleetConfig {
            habits: self.habits(),
            faults: self.faults.clone(),
            devices: self.devices,
            prefix: self.prefix,
            model: self.model,
            manufacturer: self.manufacturer,
            hw_revision: self.hw_revision,
            group: self.group,
            version: self.version_at_birth,
            image: self.image,
            topics: self.service.topic_prefix,
            seed: self.seed,
            state_dir: self.state_dir,
            mqtt_versions: match self.mqtt_version {
                MqttVersion::V3 => Versions::V3,
                MqttVersion::V5 => Versions::V5,
                MqttVersion::Mix => Versions::Mix,
            },
            chunks: self.chunks,
            downloads: self.downloads,
            connect_rate: self.connect_rate,
            rollout,
            campaign: self.campaign,
            until,
            timeout: self.timeout.map(|time| time.0),
            expect: self.expect,
            expect_share: self.expect_share,
            ca: self.service.ca,
            ..FleetConfig::new(&self.service.http, &self.service.mqtt, &admin_key)
        })
    }

    fn rollout(&self) -> Option<Rollout> {
        Some(Rollout {
            image: self.rollout.clone()?,
            version: self.to_version.clone()?,
            base: self
                .image
                .clone()
                .map(|image| (image, self.version_at_birth.clone())),
            strategy: self.strategy,
            device_model: self.model.clone(),
            manufacturer: self
                .manufacturer
                .clone()
                .unwrap_or_else(|| "device-sim".to_owned()),
            groups: vec![self.group.clone()],
            failure_threshold_percent: self.failure_threshold,
            max_concurrent_updates: self.devices.max(1),
            // Else a device that is low on them would be like any other.
            requires: (
                (self.faults.low_battery != Share::NONE).then_some(FIT_BATTERY_PERCENT),
                (self.faults.low_storage != Share::NONE).then_some(FIT_STORAGE_BYTES),
            ),
        })
    }

    fn habits(&self) -> Habits {
        let mut habits = Habits {
            heartbeat: self.heartbeat.0,
            keep_alive: self.keep_alive.0,
            check_interval: self.check_interval.0,
            reboot_time: self.reboot_time.0,
            install_time: self.install_time.0,
            speed: self.speed,
            device_type: self.device_type.clone(),
            ..Habits::default()
        };
        self.faults.set(&mut habits);
        habits
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::faults::FailAt;
    use clap::CommandFactory as _;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_a_fleet() {
        let cli = Cli::try_parse_from([
            "device-sim",
            "--admin-key",
            "k",
            "--devices",
            "7",
            "--fail",
            "health=50%",
            "--fail",
            "installing=1",
            "--reboot-time",
            "300ms",
            "--until",
            "1.1.0",
            "--recover",
            "7s",
            "--rollout",
            "image.bin",
            "--to-version",
            "1.1.0",
            "--strategy",
            "blue_green",
        ]);
        let config = cli.unwrap().into_config().unwrap();
        assert_eq!(config.devices, 7);
        assert_eq!(config.habits.reboot_time, Duration::from_millis(300));
        let (habits, rollout) = (&config.habits, config.rollout.as_ref().unwrap());
        assert_eq!(habits.recover, Duration::from_secs(7));
        assert_eq!(habits.offline_for, Duration::from_secs(15));
        assert_eq!(rollout.strategy, Strategy::BlueGreen);
        assert_eq!(config.until, Until::Version("1.1.0".to_owned()));
        assert_eq!(
            config.faults.fail,
            [
                (FailAt::Health, Share::Percent(50.0)),
                (FailAt::Installing, Share::Count(1))
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            ["--fail", "rebooting=5%"],
            ["--silent", "200%"],
            ["--heartbeat", "soon"],
        ] {
            let args = ["device-sim"].into_iter().chain(flags);
            assert!(Cli::try_parse_from(args).is_err(), "{flags:?}");
        }
    }
}
