//! NATS with `JetStream`, as a place for events and as a broker for devices.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{READY_TIME, Running, free_port};

/// A running `nats-server`.
#[derive(Debug)]
pub(crate) struct Nats {
    pub(crate) process: Running,
    /// Where its own clients connect.
    pub(crate) url: String,
    /// Where MQTT clients connect; everybody may.
    pub(crate) mqtt: SocketAddr,
}

/// Its ports, which stay the same over restarts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    client: u16,
    mqtt: u16,
}

impl Ports {
    pub(crate) fn free() -> anyhow::Result<Self> {
        Ok(Self {
            client: free_port()?,
            mqtt: free_port()?,
        })
    }
}

impl Nats {
    /// Starts it with its files below `folder`, and returns when it takes MQTT clients. More messages than
    /// by default (a hundred) may be on their way to one subscription; NATS refuses more than 65,535 over all five of the service.
    pub(crate) fn start(folder: &Path, ports: Ports) -> anyhow::Result<Self> {
        let config = folder.join("nats.conf");
        fs::write(
            &config,
            format!(
                "server_name: bench\nhost: 127.0.0.1\nport: {}\njetstream {{ store_dir: \"{}\" }}\n\
                 mqtt {{ host: 127.0.0.1, port: {}, max_ack_pending: 13000 }}\n",
                ports.client,
                folder.join("jetstream").display(),
                ports.mqtt
            ),
        )?;
        let log_path = folder.join("nats.log");
        let log = File::create(&log_path)?;
        let mut process = Running::spawn(
            Command::new("nats-server")
                .arg("-c")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        let mqtt = SocketAddr::from(([127, 0, 0, 1], ports.mqtt));
        let asked = Instant::now();
        while TcpStream::connect(mqtt).is_err() {
            let dead = process.has_ended() || asked.elapsed() > READY_TIME;
            anyhow::ensure!(
                !dead,
                "nats-server did not start: {}",
                fs::read_to_string(&log_path)?
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self {
            process,
            url: format!("nats://127.0.0.1:{}", ports.client),
            mqtt,
        })
    }
}
