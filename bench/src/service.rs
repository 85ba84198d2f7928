//! The service as a child: the release binary that was built beside this one.

use std::fs::{self, File};
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

use crate::process::Running;

/// A running service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) process: Running,
    pub(crate) http: SocketAddr,
    /// Where devices connect: its gateway, or the broker beside it.
    pub(crate) mqtt: SocketAddr,
    pub(crate) key: String,
    // The other end stays open: the service may write to it.
    _stdout: BufReader<ChildStdout>,
}

/// What a service is started beside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beside {
    /// A broker that lets everybody in, instead of its own gateway.
    pub(crate) broker: Option<SocketAddr>,
    /// Further flags and their values.
    pub(crate) flags: Vec<(&'static str, String)>,
}

/// Where the release binary is.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let binary = own.with_file_name("device-ota");
    anyhow::ensure!(
        binary.is_file(),
        "{} is missing; build it first: cargo build --release",
        binary.display()
    );
    Ok(binary)
}

impl Service {
    /// A first start, which makes the keys: one that finds devices and no keys that they could trust is refused.
    pub(crate) fn make_keys(folder: &Path, database: &str) -> anyhow::Result<()> {
        Self::start(folder, database).map(drop)
    }

    /// Starts it on this folder and database, and returns when it accepts.
    pub(crate) fn start(folder: &Path, database: &str) -> anyhow::Result<Self> {
        Self::start_beside(folder, database, &Beside::default())
    }

    /// Starts it beside other servers.
    pub(crate) fn start_beside(
        folder: &Path,
        database: &str,
        beside: &Beside,
    ) -> anyhow::Result<Self> {
        let log_path = folder.join("service.log");
        let log = File::create(&log_path)?;
        let mut process = Running::spawn(
            command(folder, database, beside)?
                .stdout(Stdio::piped())
                .stderr(log),
        )?;
        let ready = process.lines_from("ready ");
        let (line, stdout) = ready.with_context(|| said(&log_path))?;
        let ready: Value = serde_json::from_str(&line).context("the ready line is not JSON")?;
        let text = |name: &str| {
            ready
                .get(name)
                .and_then(Value::as_str)
                .with_context(|| format!("no {name} in the ready line"))
        };
        let key_file = text("admin_key_file")?;
        let key =
            fs::read_to_string(key_file).with_context(|| format!("{key_file} cannot be read"))?;
        Ok(Self {
            http: text("http")?.parse()?,
            mqtt: match beside.broker {
                Some(broker) => broker,
                None => text("mqtt")?.parse()?,
            },
            key: key.trim().to_owned(),
            process,
            _stdout: stdout,
        })
    }
}

fn command(folder: &Path, database: &str, beside: &Beside) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    for (flag, value) in [
        ("--data-dir", folder.as_os_str()),
        ("--database-url", database.as_ref()),
        ("--http-addr", "127.0.0.1:0".as_ref()),
        ("--mqtt-addr", "127.0.0.1:0".as_ref()),
        ("--mqtt-bus-addr", "off".as_ref()),
        ("--rate-limit-heartbeat", "off".as_ref()),
        ("--rate-limit-update-check", "off".as_ref()),
        ("--rate-limit-api", "off".as_ref()),
        ("--log", "warn".as_ref()),
    ] {
        command.arg(flag).arg(value);
    }
    if let Some(broker) = beside.broker {
        command.arg("--mqtt-broker").arg(format!("mqtt://{broker}"));
    }
    for (flag, value) in &beside.flags {
        command.arg(flag).arg(value);
    }
    Ok(command)
}

/// The log's last words, for an error.
fn said(log: &Path) -> String {
    const LAST: usize = 10;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(LAST)..)
        .unwrap_or_default();
    format!(
        "the service did not start; its log ends with:\n{}",
        last.join("\n")
    )
}
