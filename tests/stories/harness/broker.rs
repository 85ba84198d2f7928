//! mosquitto as the external broker: the repository's own `mosquitto.conf`, changed only in port and paths, and with TLS as
//! it says itself.

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

use super::authority::Certified;
use super::wait::eventually;

/// Name and secret of the service's own user at the broker.
pub(super) const SERVICE_USER: &str = "device-ota";
pub(super) const SERVICE_PASSWORD: &str = "only-for-this-test";

/// How often the keeper looks whether the password file has changed.
const KEEPER_LOOKS_EVERY: Duration = Duration::from_millis(20);

/// The listener for devices, and the service's own.
#[derive(Clone, Copy)]
struct Ports {
    devices: u16,
    service: u16,
}

/// The broker's certificate, and the authority of the service's own.
#[derive(Debug, Clone)]
pub struct BrokerTls {
    pub own: Certified,
    pub service_ca: PathBuf,
}

/// A running mosquitto, ended with the test.
pub struct Mosquitto {
    child: Option<Child>,
    folder: PathBuf,
    ports: Ports,
    is_secured: bool,
    passwords: PathBuf,
    /// The file as it was when the broker was last told to read it.
    told: Arc<Mutex<Vec<u8>>>,
    /// Ends the keeper of the process that runs.
    ended: Arc<AtomicBool>,
}

impl Mosquitto {
    /// Starts one on a free port, its files below `folder`.
    pub async fn start(folder: &Path, tls: Option<&BrokerTls>) -> Self {
        let folder = folder.join("mosquitto");
        fs::create_dir_all(&folder).unwrap();
        let passwords = folder.join("passwords");
        fs::write(&passwords, "").unwrap();
        let ports = Ports {
            devices: free_port(),
            service: free_port(),
        };
        fs::write(folder.join("mosquitto.conf"), adapted(&folder, ports, tls)).unwrap();
        let mut mosquitto = Self {
            child: None,
            folder,
            ports,
            is_secured: tls.is_some(),
            passwords,
            told: Arc::default(),
            ended: Arc::default(),
        };
        mosquitto.start_again().await;
        mosquitto
    }

    /// Starts it once more, with what it has kept.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "the broker runs already");
        let passwords = fs::read(&self.passwords).unwrap();
        let log = fs::File::create(self.folder.join("log")).unwrap();
        let mut child = Command::new(program())
            .arg("-c")
            .arg(self.folder.join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("mosquitto is installed");
        eventually("mosquitto accepts connections", async || {
            if let Some(status) = child.try_wait().unwrap() {
                let said = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("mosquitto ended with {status}: {said}");
            }
            TcpStream::connect(("127.0.0.1", self.ports.devices))
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        self.keep_passwords_fresh(&child, passwords);
        self.child = Some(child);
    }

    /// Ends it in order, as an operator does; what waits in it is saved.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the broker runs");
        self.ended.store(true, Ordering::Release);
        kill(pid(&child), Signal::SIGTERM).unwrap();
        child.wait().unwrap();
    }

    /// Where it listens for devices.
    pub fn address(&self) -> String {
        let scheme = if self.is_secured { "mqtts://" } else { "" };
        format!("{scheme}127.0.0.1:{}", self.ports.devices)
    }

    /// What the service must be told.
    pub fn settings(&self) -> [(&'static str, String); 2] {
        let scheme = if self.is_secured { "mqtts" } else { "mqtt" };
        let url = format!(
            "{scheme}://{SERVICE_USER}:{SERVICE_PASSWORD}@127.0.0.1:{}",
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
    fn keep_passwords_fresh(&mut self, child: &Child, read_at_start: Vec<u8>) {
        self.ended = Arc::default();
        let (file, told, ended) = (
            self.passwords.clone(),
            self.told.clone(),
            self.ended.clone(),
        );
        // It has read the file at its start. To be told of nothing new would do harm: docs/operations.md, mosquitto.
        *told.lock().unwrap() = read_at_start;
        let broker = pid(child);
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
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(super) fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// The repository's configuration with this test's port and files; with TLS, by the lines that it has for that.
fn adapted(folder: &Path, ports: Ports, tls: Option<&BrokerTls>) -> String {
    const OF_LISTENERS: [&str; 6] = [
        "listener",
        "use_username_as_clientid",
        "certfile",
        "keyfile",
        "cafile",
        "require_certificate",
    ];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("mosquitto.conf");
    let text = fs::read_to_string(&source).expect("mosquitto.conf stands at the repository's root");
    let mut adapted = String::new();
    for line in text.lines() {
        let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let of_tls = line
            .strip_prefix('#')
            .filter(|line| OF_LISTENERS.contains(&key(line).as_str()));
        let line = match (of_tls, tls) {
            (Some(line), Some(_)) => line,
            (None, Some(_)) if OF_LISTENERS.contains(&key(line).as_str()) => continue,
            _ => line,
        };
        let value = line.split_whitespace().nth(1).unwrap_or_default();
        let changed = match (key(line).as_str(), tls) {
            ("listener", _) => listener(value, ports),
            ("certfile", Some(tls)) => format!("certfile {}", tls.own.cert.display()),
            ("keyfile", Some(tls)) => format!("keyfile {}", tls.own.key.display()),
            ("cafile", Some(tls)) => format!("cafile {}", tls.service_ca.display()),
            ("password_file", _) => {
                format!("password_file {}", folder.join("passwords").display())
            }
            ("acl_file", _) => format!("acl_file {}", acl_file(folder, value).display()),
            ("persistence_location", _) => format!("persistence_location {}/", folder.display()),
            ("log_dest", _) => "log_dest stdout".to_owned(),
            ("pid_file" | "user", _) => continue,
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

/// The service's listener is the one on 1885, or 8885 with TLS.
fn listener(port: &str, ports: Ports) -> String {
    let port = if matches!(port, "1885" | "8885") {
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
pub(super) fn free_port() -> u16 {
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
