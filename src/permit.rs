//! Signs a rollback permit with the release key that this installation holds.

use anyhow::Context as _;
use clap::Args;
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::Clock as _;
use device_ota_engine::ports::clock::random;
use device_ota_protocol::digest::Digest;
use device_ota_protocol::ids::DeviceId;
use device_ota_protocol::objects::{self, RollbackPermit};
use jiff::SignedDuration;

use crate::config::Config;
use crate::keys;
use crate::system::{SystemClock, SystemEntropy};

/// What is permitted, to whom and for how long.
#[derive(Debug, Args)]
pub(crate) struct PermitCommand {
    /// The device that may go back.
    #[arg(
        long,
        required_unless_present = "campaign",
        conflicts_with = "campaign"
    )]
    device: Option<DeviceId>,
    /// The campaign whose devices may go back, each once.
    #[arg(long)]
    campaign: Option<String>,
    /// SHA-256 of the image that runs.
    #[arg(long)]
    from_sha256: Digest,
    /// SHA-256 of the image that may replace it.
    #[arg(long)]
    to_sha256: Digest,
    /// It permits nothing after so many hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=8_760))]
    hours: u16,
}

/// The keys that the service here signs with.
fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    match &config.keys {
        Some(given) => keys::given(given),
        None => keys::made(&config.data_dir)
            .context("DATA_DIR")?
            .context("no start has made any keys in the data folder yet"),
    }
}

/// Prints the envelope, to be sent to `POST /api/v1/ota/permits`.
pub(crate) fn run(config: &Config, command: PermitCommand) -> anyhow::Result<()> {
    let keyring = keyring(config)?;
    let key = keyring.release().ok_or_else(|| {
        anyhow::anyhow!(
            "this installation holds no release key (RELEASE_KEY); sign the permit where it is kept"
        )
    })?;
    let permit = RollbackPermit {
        permit_id: format!("permit_{}", hex::encode(random::<8>(&SystemEntropy))),
        device_id: command.device,
        campaign_id: command.campaign,
        from_sha256: command.from_sha256,
        to_sha256: command.to_sha256,
        expires_at: SystemClock
            .now()
            .checked_add(SignedDuration::from_hours(command.hours.into()))?,
    };
    let envelope = objects::seal(&permit, key)?.to_json();
    println!("{}", String::from_utf8_lossy(&envelope));
    Ok(())
}
