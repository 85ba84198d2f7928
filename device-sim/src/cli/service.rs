//! Where the service is, for a fleet and for a story.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use device_ota_protocol::topics::Prefix;

use crate::scenario::Service;

/// A story to play.
#[derive(Debug, Args)]
pub struct ScenarioArgs {
    /// The story, such as `device-sim/scenarios/staged.toml`.
    file: PathBuf,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
}

/// Where the service is, who asks, and how it is told.
#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// The service's HTTP interface.
    #[arg(long, default_value = "http://127.0.0.1:8216", env = "DEVICE_SIM_HTTP")]
    pub(super) http: String,
    /// Where devices connect to, as host and port; with TLS behind `mqtts://`.
    #[arg(long, default_value = "127.0.0.1:1883", env = "DEVICE_SIM_MQTT")]
    pub(super) mqtt: String,
    /// A file of the authorities that are believed over TLS, PEM. Without it HTTPS believes the system's.
    #[arg(long, env = "DEVICE_SIM_CA")]
    pub(super) ca: Option<PathBuf>,
    /// A file that holds the admin API key.
    #[arg(long, default_value = "./data/admin.key")]
    admin_key_file: PathBuf,
    /// The admin API key itself.
    #[arg(long, env = "DEVICE_SIM_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// Levels before each device's topics.
    #[arg(long, default_value = "ota/v1")]
    pub(super) topic_prefix: Prefix,
    /// Print the summary as JSON on standard output.
    #[arg(long)]
    pub(super) json: bool,
    /// Print no progress.
    #[arg(long, short)]
    pub(super) quiet: bool,
}

impl ScenarioArgs {
    /// The file with the story.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The service to play it with.
    pub fn service(&self) -> anyhow::Result<Service> {
        anyhow::ensure!(
            !self.service.mqtt.starts_with("mqtts://") && self.service.ca.is_none(),
            "a story has a network of its own between devices and service, and that carries no TLS"
        );
        Ok(Service {
            http: self.service.http.clone(),
            mqtt: self.service.mqtt.clone(),
            admin_key: self.service.read_admin_key()?,
            topics: self.service.topic_prefix.clone(),
        })
    }
}

impl ServiceArgs {
    pub(super) fn read_admin_key(&self) -> anyhow::Result<String> {
        if let Some(key) = &self.admin_key {
            return Ok(key.clone());
        }
        let path = &self.admin_key_file;
        let key = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the admin key in {}: is the service running here? \
                 (see --admin-key-file)",
                path.display()
            )
        })?;
        Ok(key.trim().to_owned())
    }
}
