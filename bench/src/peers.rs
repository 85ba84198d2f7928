//! What the service is compared with: mosquitto, a consumer of it that stores what it takes, an S3 server, and a constant over HTTP.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use device_ota_domain::{DeviceId, DeviceKey};
use device_ota_engine::ports::Store;
use device_ota_engine::ports::store::Touch;
use device_ota_engine::ports::telemetry::HeartbeatRow;
use device_ota_objects::testing::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use device_ota_protocol::Slot;
use device_ota_protocol::messages::{Heartbeat, Report, parse_report};
use device_ota_protocol::topics::{Prefix, Topic, Up};
use jiff::Timestamp;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use tokio::sync::mpsc;
use warp::Filter as _;

use crate::fleet::{self, Database};
use crate::process::{READY_TIME, Running, free_port};

/// Where mosquitto is, beside what `PATH` says.
const MOSQUITTO: [&str; 2] = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
/// Messages in one transaction of the consumer at most: as the service has it.
const MAX_BATCH: usize = 4_000;
/// Messages between the client's loop and the transactions.
const QUEUE: usize = 16_384;
/// Acknowledgements that wait to be sent.
const ACK_QUEUE: usize = 65_536;
/// Largest packet that the consumer takes, bytes.
const MAX_PACKET: usize = 64 * 1024;

/// A running mosquitto.
#[derive(Debug)]
pub(crate) struct Mosquitto {
    pub(crate) process: Running,
    pub(crate) addr: SocketAddr,
}

impl Mosquitto {
    /// Starts it and returns when it takes connections. Its limits are raised: by default it drops most of a fast
    /// stream to a slow subscriber. With a file, it asks for passwords.
    pub(crate) fn start(folder: &Path, passwords: Option<&Path>) -> anyhow::Result<Self> {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        Self::start_at(addr, folder, passwords)
    }

    /// The same where it was before.
    pub(crate) fn start_at(
        addr: SocketAddr,
        folder: &Path,
        passwords: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let access = match passwords {
            None => "allow_anonymous true".to_owned(),
            Some(file) => format!("allow_anonymous false\npassword_file {}", file.display()),
        };
        let config = folder.join("mosquitto.conf");
        fs::write(
            &config,
            format!(
                "user root\nlistener {} 127.0.0.1\n{access}\npersistence false\nset_tcp_nodelay true\n\
                 max_inflight_messages 0\nmax_queued_messages 0\nlog_dest stderr\nlog_type error\n",
                addr.port()
            ),
        )?;
        let binary = MOSQUITTO
            .iter()
            .find(|path| Path::new(path).is_file())
            .copied()
            .unwrap_or("mosquitto");
        let log = fs::File::create(folder.join("mosquitto.log"))?;
        let mut process = Running::spawn(
            Command::new(binary)
                .arg("-c")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        let asked = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let dead = process.has_ended() || asked.elapsed() > READY_TIME;
            anyhow::ensure!(
                !dead,
                "mosquitto did not start: {}",
                fs::read_to_string(folder.join("mosquitto.log"))?
            );
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(Self { process, addr })
    }
}

/// Writes a password file of the first `count` devices.
pub(crate) fn password_file(folder: &Path, count: usize) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = folder.join("mosquitto.passwords");
    let verifier = fleet::verifier();
    let mut text = String::new();
    for name in fleet::names(count) {
        text.extend([name.as_str(), ":", verifier.as_str(), "\n"]);
    }
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&file)?
        .write_all(text.as_bytes())?;
    Ok(file)
}

/// What the consumer is told.
#[derive(Debug, Args)]
pub(crate) struct IngestOptions {
    /// The broker.
    #[arg(long)]
    broker: SocketAddr,
    /// The database, with the devices in it.
    #[arg(long)]
    database: String,
    /// How many devices.
    #[arg(long)]
    devices: usize,
}

/// Starts a consumer of this broker; `ready` is its first line, then one line with a count for each transaction.
pub(crate) fn start_ingest(
    broker: SocketAddr,
    database: &Database,
    devices: usize,
) -> anyhow::Result<Running> {
    Running::spawn(
        Command::new(std::env::current_exe()?)
            .arg("peer-ingest")
            .args([
                "--broker",
                &broker.to_string(),
                "--database",
                &database.url(),
                "--devices",
                &devices.to_string(),
            ])
            .stdout(Stdio::piped()),
    )
}

/// The consumer: takes heartbeats with manual acknowledgements, stores them batch by batch exactly as the service
/// does, and acknowledges after each commit. On one thread: measured faster than on several.
pub(crate) fn ingest(options: &IngestOptions) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let store = Database::from_url(&options.database).open().await?;
            let keys = keys(store.as_ref(), options.devices).await?;
            let mut mqtt = MqttOptions::new(
                "bench-ingest",
                options.broker.ip().to_string(),
                options.broker.port(),
            );
            mqtt.set_manual_acks(true)
                .set_max_packet_size(MAX_PACKET, MAX_PACKET)
                .set_keep_alive(Duration::from_mins(10));
            let (client, mut events) = AsyncClient::new(mqtt, ACK_QUEUE);
            events.network_options.set_tcp_nodelay(true);
            client
                .subscribe(Prefix::default().any_up(Up::Heartbeat), QoS::AtLeastOnce)
                .await?;
            let (queue, waiting) = mpsc::channel(QUEUE);
            let storing = tokio::spawn(store_batches(store, keys, client, waiting));
            loop {
                match events.poll().await? {
                    Event::Incoming(Packet::Publish(publish)) => {
                        let stored = queue.send(publish).await;
                        if stored.is_err() {
                            return storing.await?;
                        }
                    }
                    Event::Incoming(Packet::SubAck(_)) => say("ready")?,
                    _ => {}
                }
            }
        })
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

async fn keys(store: &dyn Store, count: usize) -> anyhow::Result<HashMap<String, DeviceKey>> {
    let mut keys = HashMap::with_capacity(count);
    for name in fleet::names(count) {
        let id: DeviceId = name.parse()?;
        let known = store
            .credentials(&id)
            .await?
            .with_context(|| format!("{id} is not registered"))?;
        keys.insert(name, known.key);
    }
    Ok(keys)
}

async fn store_batches(
    store: std::sync::Arc<dyn Store>,
    keys: HashMap<String, DeviceKey>,
    client: AsyncClient,
    mut waiting: mpsc::Receiver<Publish>,
) -> anyhow::Result<()> {
    let prefix = Prefix::default();
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (touches, rows) = rows(&prefix, &keys, &batch);
        let mut tx = store.begin().await?;
        tx.touch(&touches).await?;
        tx.insert_heartbeats(&rows).await?;
        tx.commit().await?;
        for publish in batch.drain(..) {
            client.ack(&publish).await?;
        }
        say(&rows.len().to_string())?;
    }
    Ok(())
}

fn rows(
    prefix: &Prefix,
    keys: &HashMap<String, DeviceKey>,
    batch: &[Publish],
) -> (Vec<Touch>, Vec<HeartbeatRow>) {
    let now = fleet::now();
    let mut touches = BTreeMap::new();
    let mut rows = Vec::with_capacity(batch.len());
    for publish in batch {
        let Ok(Topic::Up(id, Up::Heartbeat)) = prefix.parse(&publish.topic) else {
            continue;
        };
        let Ok(Report::Heartbeat(heartbeat)) = parse_report(Up::Heartbeat, &publish.payload) else {
            continue;
        };
        let Some(&device) = keys.get(id.as_str()) else {
            continue;
        };
        touches.insert(device, touch(device, now, &heartbeat));
        let payload = String::from_utf8_lossy(&publish.payload).into();
        rows.push(HeartbeatRow {
            device,
            received_at: now,
            payload,
        });
    }
    (touches.into_values().collect(), rows)
}

/// What a heartbeat says of a device's present state.
pub(crate) fn touch(device: DeviceKey, at: Timestamp, heartbeat: &Heartbeat) -> Touch {
    Touch {
        device,
        last_seen: Some(at),
        version: Some(heartbeat.version.clone()),
        slot: heartbeat.slot.map(Slot::as_str),
        confirmed: heartbeat.confirmed,
        battery_percent: heartbeat.battery.map(|battery| battery.percent),
        free_storage_bytes: heartbeat
            .storage
            .and_then(|storage| i64::try_from(storage.free_bytes).ok()),
        ..Touch::default()
    }
}

/// Starts an S3 server; answers the flags of a service that keeps its images there, and gives links to it.
/// Its files are below `folder`.
pub(crate) fn start_bucket(
    folder: &Path,
) -> anyhow::Result<(Running, Vec<(&'static str, String)>)> {
    let mut process = Running::spawn(
        Command::new(std::env::current_exe()?)
            .arg("peer-bucket")
            .env("TMPDIR", folder)
            .stdout(Stdio::piped()),
    )?;
    let (endpoint, _) = process.lines_from("ready ")?;
    let flags = [
        ("--storage-type", "s3"),
        ("--storage-s3-endpoint", &endpoint),
        ("--storage-s3-public-endpoint", &endpoint),
        ("--storage-s3-bucket", BUCKET),
        ("--storage-s3-access-key", ACCESS_KEY),
        ("--storage-s3-secret-key", SECRET_KEY),
    ];
    let flags = flags.map(|(flag, value)| (flag, value.to_owned()));
    Ok((process, flags.to_vec()))
}

/// The S3 server, until it is ended.
pub(crate) fn bucket() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let server = S3Server::start().await;
            say(&format!("ready {}", server.endpoint()))?;
            std::future::pending().await
        })
}

/// Starts the constant; its first line says where it listens.
pub(crate) fn start_constant() -> anyhow::Result<(Running, SocketAddr)> {
    let mut process = Running::spawn(
        Command::new(std::env::current_exe()?)
            .arg("peer-constant")
            .stdout(Stdio::piped()),
    )?;
    let (addr, _) = process.lines_from("ready ")?;
    Ok((process, addr.parse()?))
}

/// warp, answering every request with the same short text.
pub(crate) fn constant() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            say(&format!("ready {}", listener.local_addr()?))?;
            warp::serve(warp::any().map(|| "constant"))
                .incoming(listener)
                .run()
                .await;
            Ok(())
        })
}
