//! mosquitto as the external broker: the repository's own `mosquitto.conf`, changed only in port and paths.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use super::wait::eventually;

/// Name and secret of the service's own user at the broker.
const SERVICE_USER: &str = "device-ota";
const SERVICE_PASSWORD: &str = "only-for-this-test";

/// How often the keeper looks whether the password file has changed.
const KEEPER_LOOKS_EVERY: Duration = Duration::from_millis(20);

/// The listener for devices, and the service's own.
#[derive(Clone, Copy)]
struct Ports {
    devices: u16,
    service: u16,
}

/// A running mosquitto, ended with the test.
pub struct Mosquitto {
    child: Child,
    ports: Ports,
    passwords: PathBuf,
    /// The file as it was when the broker was last told to read it.
    told: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl Mosquitto {
    /// Starts one on a free port, its files below `folder`.
    pub async fn start(folder: &Path) -> Self {
        let folder = folder.join("mosquitto");
        fs::create_dir_all(&folder).unwrap();
        let passwords = folder.join("passwords");
        fs::write(&passwords, "").unwrap();
        let ports = Ports {
            devices: free_port(),
            service: free_port(),
        };
        let config = folder.join("mosquitto.conf");
        fs::write(&config, adapted(&folder, ports)).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut child = Command::new(program())
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("mosquitto is installed");
        eventually("mosquitto accepts connections", async || {
            if let Some(status) = child.try_wait().unwrap() {
                let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
                panic!("mosquitto ended with {status}: {said}");
            }
            TcpStream::connect(("127.0.0.1", ports.devices))
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        let mosquitto = Self {
            child,
            ports,
            passwords,
            told: Arc::default(),
            ended: Arc::default(),
        };
        mosquitto.keep_passwords_fresh();
        mosquitto
    }

    /// Where it listens for devices.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.devices)
    }

    /// What the service must be told.
    pub fn settings(&self) -> [(&'static str, String); 2] {
        let url = format!(
            "mqtt://{SERVICE_USER}:{SERVICE_PASSWORD}@127.0.0.1:{}",
            self.ports.service
        );
        [
            ("MQTT_BROKER", url),
            ("MQTT_PASSWORD_FILE", self.passwords.display().to_string()),
        ]
    }

    /// Waits until the broker has been told of a password file in which `device_id` stands.
    pub async fn knows(&self, device_id: &str) {
        let line = format!("{device_id}:");
        eventually("the password file names the device", async || {
            let text = fs::read_to_string(&self.passwords).unwrap_or_default();
            if text.lines().any(|known| known.starts_with(&line)) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        let file = fs::read(&self.passwords).unwrap_or_default();
        eventually(
            "mosquitto was told to read its passwords again",
            async || {
                let told = self.told.lock().unwrap().clone();
                if told == file {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&told).into_owned())
                }
            },
        )
        .await;
    }

    /// Does what whoever runs the broker does: SIGHUP after the file has changed.
    fn keep_passwords_fresh(&self) {
        let (file, told, ended) = (
            self.passwords.clone(),
            self.told.clone(),
            self.ended.clone(),
        );
        let broker = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(KEEPER_LOOKS_EVERY);
                let now = fs::read(&file).unwrap_or_default();
                if now != *told.lock().unwrap() {
                    let _ = kill(broker, Signal::SIGHUP);
                    *told.lock().unwrap() = now;
                }
            }
        });
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The repository's configuration with this test's port and files.
fn adapted(folder: &Path, ports: Ports) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("mosquitto.conf");
    let text = fs::read_to_string(&source).expect("mosquitto.conf stands at the repository's root");
    let mut adapted = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let changed = match key {
            "listener" => listener(words.next().unwrap_or_default(), ports),
            "password_file" => format!("password_file {}", folder.join("passwords").display()),
            "acl_file" => format!(
                "acl_file {}",
                acl_file(folder, words.next().unwrap_or_default()).display()
            ),
            "persistence_location" => format!("persistence_location {}/", folder.display()),
            "log_dest" => "log_dest stdout".to_owned(),
            "pid_file" | "user" => continue,
            _ => line.to_owned(),
        };
        adapted.push_str(&changed);
        adapted.push('\n');
    }
    // As root it would become another user, who cannot read the test's files.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        adapted.push_str("user root\n");
    }
    adapted
}

/// The service's listener is the one on 1885.
fn listener(port: &str, ports: Ports) -> String {
    let port = if port == "1885" {
        ports.service
    } else {
        ports.devices
    };
    format!("listener {port} 127.0.0.1")
}

/// The repository's access rules, which lie beside its `mosquitto.conf`, copied to the test's folder.
fn acl_file(folder: &Path, named: &str) -> PathBuf {
    let name = Path::new(named).file_name().expect("acl_file names a file");
    let copy = folder.join(name);
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), &copy)
        .expect("the access rules lie in the repository");
    copy
}

/// mosquitto cannot say which port it took for 0, so one is looked for here.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn program() -> &'static str {
    let debian = "/usr/sbin/mosquitto";
    if Path::new(debian).exists() {
        debian
    } else {
        "mosquitto"
    }
}
