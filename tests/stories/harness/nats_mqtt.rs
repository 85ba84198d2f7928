//! NATS server as the external broker, by its MQTT: the repository's own `nats-mqtt.conf`, changed only in ports and paths.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tokio::net::TcpStream;

use super::broker::{SERVICE_PASSWORD, SERVICE_USER, free_port, pid};
use super::wait::eventually;

/// How often the keeper looks whether there are new devices.
const KEEPER_LOOKS_EVERY: Duration = Duration::from_millis(20);

/// Devices and their secrets.
type Secrets = BTreeMap<String, String>;

/// A running server, ended with the test.
pub struct NatsBroker {
    child: Option<Child>,
    folder: PathBuf,
    fleet: PathBuf,
    port: u16,
    /// Those of whom the server has been told.
    told: Arc<Mutex<Secrets>>,
    /// Those that were registered by the story itself.
    registered: Arc<Mutex<Secrets>>,
    ended: Arc<AtomicBool>,
}

impl NatsBroker {
    /// Starts one on a free port, its files below `folder`.
    pub async fn start(folder: &Path) -> Self {
        let folder = folder.join("nats");
        fs::create_dir_all(folder.join("data")).unwrap();
        let (port, own) = (free_port(), free_port());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats-mqtt.conf");
        let text = fs::read_to_string(&source).expect("it stands at the repository's root");
        let text = text
            .replace("0.0.0.0:1883", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:4222", &format!("127.0.0.1:{own}"));
        fs::write(folder.join("nats-mqtt.conf"), text).unwrap();
        write_users(&folder, &Secrets::new());
        let mut broker = Self {
            child: None,
            fleet: folder.join("fleet"),
            folder,
            port,
            told: Arc::default(),
            registered: Arc::default(),
            ended: Arc::default(),
        };
        broker.start_again().await;
        broker
    }

    /// Starts it once more, with what it has kept.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let log = fs::File::create(self.folder.join("log")).unwrap();
        let mut child = Command::new("nats-server")
            .args(["-c", "nats-mqtt.conf"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nats-server is installed");
        eventually("nats-server accepts connections", async || {
            if let Some(status) = child.try_wait().unwrap() {
                let said = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("nats-server ended with {status}: {said}");
            }
            TcpStream::connect(("127.0.0.1", self.port))
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        self.keep_users_fresh(&child);
        self.child = Some(child);
    }

    /// Ends it as a power cut does.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        self.ended.store(true, Ordering::Release);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Where it listens for devices.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What the service must be told.
    pub fn settings(&self) -> [(&'static str, String); 1] {
        let url = format!(
            "mqtt://{SERVICE_USER}:{SERVICE_PASSWORD}@127.0.0.1:{}",
            self.port
        );
        [("MQTT_BROKER", url)]
    }

    /// A fleet that registers itself keeps its secrets in this folder.
    pub fn fleet_folder(&self) -> &Path {
        &self.fleet
    }

    /// Takes up a device.
    pub async fn admit(&self, device_id: &str, secret: &str) {
        let secrets = (device_id.to_owned(), secret.to_owned());
        self.registered.lock().unwrap().extend([secrets]);
        self.knows(device_id).await;
    }

    /// Waits until the server has been told of a device.
    pub async fn knows(&self, device_id: &str) {
        eventually("the server was told of the device", async || {
            let told = self.told.lock().unwrap();
            if told.contains_key(device_id) {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        })
        .await;
    }

    /// Does what whoever runs the server does: an entry a device, with its secret from the answer to its registration.
    fn keep_users_fresh(&mut self, child: &Child) {
        self.ended = Arc::default();
        let (folder, fleet, server) = (self.folder.clone(), self.fleet.clone(), pid(child));
        let (told, registered) = (self.told.clone(), self.registered.clone());
        let ended = self.ended.clone();
        std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(KEEPER_LOOKS_EVERY);
                let mut secrets = registered.lock().unwrap().clone();
                secrets.extend(of_fleet(&fleet));
                if secrets != *told.lock().unwrap() {
                    write_users(&folder, &secrets);
                    let _ = kill(server, Signal::SIGHUP);
                    *told.lock().unwrap() = secrets;
                }
            }
        });
    }
}

impl Drop for NatsBroker {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
    }
}

/// What a fleet remembers of its devices.
fn of_fleet(folder: &Path) -> Secrets {
    let text = fs::read_to_string(folder.join("devices.jsonl")).unwrap_or_default();
    let devices = text.lines().map(|line| {
        let device: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| device[field].as_str().unwrap().to_owned();
        (text("device_id"), text("password"))
    });
    devices.collect()
}

fn write_users(folder: &Path, secrets: &Secrets) {
    let mut users = vec![user(
        (SERVICE_USER, SERVICE_PASSWORD),
        "ota.v1.*.down.>",
        &["ota.v1.*.up.>"],
    )];
    users.extend(secrets.iter().map(|(id, secret)| {
        let [up, down, below] = ["up.>", "down", "down.>"].map(|way| format!("ota.v1.{id}.{way}"));
        user((id, secret), &up, &[&down, &below])
    }));
    let text = format!("authorization {{\n  users: [\n{}  ]\n}}\n", users.concat());
    // The server may be reading.
    let new = folder.join("data/new");
    fs::write(&new, text).unwrap();
    fs::rename(new, folder.join("data/nats-users.conf")).unwrap();
}

fn user((name, secret): (&str, &str), writes: &str, reads: &[&str]) -> String {
    let reads = reads.join("\", \"");
    format!(
        "    {{user: \"{name}\", password: \"{secret}\", allowed_connection_types: [\"MQTT\"], permissions: {{publish: \
         [\"{writes}\"], subscribe: [\"{reads}\", \"$MQTT.sub.>\"]}}}}\n"
    )
}
