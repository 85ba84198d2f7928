//! The command line.

use clap::{Parser, Subcommand};
use nix::sys::stat::{Mode, umask};

use crate::api_keys::{self, KeysCommand};
use crate::audit::{self, AuditCommand};
use crate::check;
use crate::config::{Config, RawConfig};
use crate::permit::{self, PermitCommand};
use crate::{serve, tls};

/// MQTT-native firmware updates over the air: devices speak MQTT, admins speak HTTP, this one binary does the rest.
#[derive(Debug, Parser)]
#[command(name = "device-ota", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: RawConfig,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (the default).
    Serve,
    /// Make, list and revoke API keys, on the database itself; the service may run meanwhile.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Verify the audit trail, on the database itself; the service may run meanwhile.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Sign a rollback permit with the release key that this installation holds, and print it; the service may run meanwhile.
    ///
    /// It permits one device, or those of a campaign, to go from one image back to another that is below their security floor. The service
    /// takes it at `POST /api/v1/ota/permits`.
    Permit(PermitCommand),
    /// Look at the configuration without a start.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// `config check` in one word.
    #[command(name = "check-config", hide = true)]
    CheckConfig,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say what the configuration comes to, and what of it cannot be used: settings, key files, what earlier starts made.
    ///
    /// Nothing is made or changed, no port is opened, and no other server is asked.
    Check,
}

impl Cli {
    /// Does what was asked.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // What is written here (database, keys, images) is its owner's alone.
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
        tls::set_provider();
        let config = Config::from_sources(self.config, std::env::vars())?;
        match self.command.unwrap_or(Command::Serve) {
            Command::Keys(command) => api_keys::run(&config, command),
            Command::Audit(command) => audit::run(&config, &command),
            Command::Permit(command) => permit::run(&config, command),
            Command::Serve => serve::run(config),
            Command::CheckConfig | Command::Config(ConfigCommand::Check) => check::run(&config),
        }
    }
}
