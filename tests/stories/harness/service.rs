//! The service under test: a child process on a folder, a database and a broker of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use device_ota_store::testing::run_sql;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use super::admin::Admin;
use super::authority::{Authority, Certified};
use super::broker::BrokerTls;
use super::database::{Database, DatabaseKind};
use super::external::ExternalBroker;
use super::log::Log;
use super::wait::{eventually, within};

/// The binary that is tested.
pub const BINARY: &str = env!("CARGO_BIN_EXE_device-ota");

/// Which MQTT end devices speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttEnd {
    /// The service's own gateway.
    Gateway,
    /// mosquitto, with the service as one of its clients.
    Mosquitto,
    /// NATS server, in the same way.
    Nats,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database.
    pub database: DatabaseKind,
    /// The MQTT end.
    pub end: MqttEnd,
    settings: Vec<(String, String)>,
    /// Shell commands before its start.
    shell: Option<String>,
    expected_errors: Vec<&'static str>,
    /// Who has signed for the HTTP listener.
    authority: Option<PathBuf>,
    /// TLS of mosquitto.
    broker_tls: Option<BrokerTls>,
}

impl Options {
    fn new(database: DatabaseKind, end: MqttEnd) -> Self {
        // One address and few devices do here what a fleet does elsewhere; the limits have a story of their own.
        let settings = [
            "RATE_LIMIT_API",
            "RATE_LIMIT_HEARTBEAT",
            "RATE_LIMIT_UPDATE_CHECK",
        ];
        let settings = settings.map(|name| (name.to_owned(), "off".to_owned()));
        Self {
            database,
            end,
            settings: settings.into(),
            shell: None,
            expected_errors: Vec::new(),
            authority: None,
            broker_tls: None,
        }
    }

    pub fn sqlite_gateway() -> Self {
        Self::new(DatabaseKind::Sqlite, MqttEnd::Gateway)
    }

    pub fn postgres_gateway() -> Self {
        Self::new(DatabaseKind::Postgres, MqttEnd::Gateway)
    }

    pub fn sqlite_mosquitto() -> Self {
        Self::new(DatabaseKind::Sqlite, MqttEnd::Mosquitto)
    }

    pub fn postgres_mosquitto() -> Self {
        Self::new(DatabaseKind::Postgres, MqttEnd::Mosquitto)
    }

    pub fn sqlite_nats() -> Self {
        Self::new(DatabaseKind::Sqlite, MqttEnd::Nats)
    }

    pub fn postgres_nats() -> Self {
        Self::new(DatabaseKind::Postgres, MqttEnd::Nats)
    }

    /// With one setting, named as in the configuration without its prefix.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Without a setting that the harness makes: the service's own default is what the story is about.
    pub fn without(mut self, name: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// Started by a shell that does this first, such as setting a limit.
    pub fn after(mut self, shell: impl Into<String>) -> Self {
        self.shell = Some(shell.into());
        self
    }

    /// HTTPS by this certificate of the authority.
    pub fn with_https(mut self, authority: &Authority, own: &Certified) -> Self {
        self.authority = Some(authority.file.clone());
        self.with("HTTP_TLS_CERT", own.cert.display().to_string())
            .with("HTTP_TLS_KEY", own.key.display().to_string())
    }

    /// Devices connect with TLS too, by this certificate.
    pub fn with_mqtts(self, own: &Certified) -> Self {
        self.with("MQTT_TLS_ADDR", "127.0.0.1:0")
            .with("MQTT_TLS_CERT", own.cert.display().to_string())
            .with("MQTT_TLS_KEY", own.key.display().to_string())
    }

    /// mosquitto speaks TLS, by this certificate of the authority; the service shows it one of its own.
    pub fn with_secured_broker(
        mut self,
        authority: &Authority,
        own: &Certified,
        (service, service_ca): (&Certified, &Authority),
    ) -> Self {
        self.broker_tls = Some(BrokerTls {
            own: own.clone(),
            service_ca: service_ca.file.clone(),
        });
        self.with("MQTT_BROKER_CA", authority.file.display().to_string())
            .with("MQTT_BROKER_CERT", service.cert.display().to_string())
            .with("MQTT_BROKER_KEY", service.key.display().to_string())
    }

    /// Error lines that hold `text` are what the story wants to see.
    pub fn expecting_error(mut self, text: &'static str) -> Self {
        self.expected_errors.push(text);
        self
    }
}

/// What the service says of itself when it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ready {
    pub http: String,
    pub internal: Option<String>,
    pub mqtt: Option<String>,
    pub mqtt_tls: Option<String>,
    pub bus: Option<String>,
    pub admin_key_file: PathBuf,
}

/// A service with everything that it needs; ended with the test.
pub struct Service {
    options: Options,
    child: Option<Child>,
    log: Log,
    ready: Ready,
    key: String,
    broker: Option<ExternalBroker>,
    database: Arc<Database>,
    folder: TempDir,
}

impl Service {
    /// Starts one on an empty folder and a fresh database, every port chosen by the system.
    pub async fn start(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Database::create(options.database).await);
        let tls = options.broker_tls.as_ref();
        let broker = ExternalBroker::start(options.end, folder.path(), tls).await;
        let mut service = Self::over(options, database, broker, folder);
        service.run().await;
        service
    }

    /// Starts another replica on the database of this one, with its signing keys, on a folder of its own.
    pub async fn beside(&self, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut service = Self::over(options, self.database.clone(), None, folder);
        self.give_keys(&service.data_dir());
        service.run().await;
        service
    }

    /// Copies the signing keys and the trust root into another data folder.
    pub fn give_keys(&self, data_dir: &Path) {
        for part in ["keys", "trust"] {
            let (from, to) = (self.data_dir().join(part), data_dir.join(part));
            std::fs::create_dir_all(&to).unwrap();
            for file in std::fs::read_dir(from).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }

    /// One that does not run yet.
    fn over(
        options: Options,
        database: Arc<Database>,
        broker: Option<ExternalBroker>,
        folder: TempDir,
    ) -> Self {
        Self {
            options,
            child: None,
            log: Log::new(),
            ready: Ready {
                http: "127.0.0.1:0".to_owned(),
                internal: None,
                mqtt: Some("127.0.0.1:0".to_owned()),
                mqtt_tls: None,
                bus: Some("127.0.0.1:0".to_owned()),
                admin_key_file: PathBuf::new(),
            },
            key: String::new(),
            broker,
            database,
            folder,
        }
    }

    /// Starts the process on the ports that are known, and waits until it is ready.
    async fn run(&mut self) {
        assert!(self.child.is_none(), "the service runs already");
        let mut child = self.command(&self.data_dir()).spawn().unwrap();
        self.log = Log::new();
        self.log.capture(child.stdout.take().unwrap());
        self.log.capture(child.stderr.take().unwrap());
        self.child = Some(child);
        let ready = within(
            "the service says that it is ready",
            self.log.find(ready_line),
        )
        .await;
        self.ready = ready.expect("the service ended before it was ready");
        let key = std::fs::read_to_string(&self.ready.admin_key_file).unwrap();
        self.key = key.trim().into();
        self.is_linked().await;
    }

    /// Waits for the link to an external broker: before its first subscription nobody keeps what devices say.
    pub async fn is_linked(&self) {
        if self.broker.is_some() {
            let admin = self.admin();
            eventually("the service has its link to the broker", async || {
                let answer = admin.get("/health/detailed").await;
                let links = answer.body["counters"]["mqtt_link"]["connected"].as_u64();
                let broker = &answer.body["components"]["mqtt_broker"]["status"];
                if broker == "healthy" && links >= Some(1) {
                    Ok(())
                } else {
                    Err(answer.body.to_string())
                }
            })
            .await;
        }
    }

    /// The command that starts the service as it is configured here, on some data folder.
    pub fn command(&self, data_dir: &Path) -> Command {
        let mut command = match &self.options.shell {
            Some(shell) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("{shell}; exec \"$0\""), BINARY]);
                command
            }
            None => Command::new(BINARY),
        };
        command.env_clear();
        for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let mut set = |name: &str, value: &str| {
            command.env(format!("DEVICE_OTA_{name}"), value);
        };
        set("DATA_DIR", &data_dir.display().to_string());
        set("HTTP_ADDR", &self.ready.http);
        set("MQTT_BUS_ADDR", self.ready.bus.as_deref().unwrap_or("off"));
        set("LOG_FORMAT", "json");
        if let Some(url) = self.database.url() {
            set("DATABASE_URL", url);
        }
        match &self.broker {
            Some(broker) => broker
                .settings()
                .iter()
                .for_each(|(name, value)| set(name, value)),
            None => set("MQTT_ADDR", self.ready.mqtt.as_deref().unwrap_or("off")),
        }
        for (name, value) in &self.options.settings {
            set(name, value);
        }
        command.env("RUST_BACKTRACE", "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the binary until it ends by itself, on some data folder with settings that come before those of the service: whether it
    /// ended well, and all that it said.
    pub async fn said(
        &self,
        data_dir: &Path,
        settings: &[(&str, &str)],
        words: &[&str],
    ) -> (bool, String) {
        let mut command = tokio::process::Command::from(self.command(data_dir));
        for (name, value) in settings {
            command.env(format!("DEVICE_OTA_{name}"), value);
        }
        command.args(words).kill_on_drop(true);
        let output = within("it ends by itself", command.output()).await.unwrap();
        let said =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("panicked"), "{said}");
        (output.status.success(), said)
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs SQL on the database behind the service's back; what the database says when it refuses.
    pub async fn tamper(&self, sql: &str) -> Result<(), String> {
        let file = self.data_dir().join("device-ota.db");
        let url = self.database.url().map(ToOwned::to_owned);
        let url = url.unwrap_or_else(|| format!("sqlite://{}", file.display()));
        run_sql(&url, sql).await
    }

    /// Takes away what keeps the audit trail from being changed, as the database's owner can.
    pub async fn without_audit_guards(&self) {
        let sql = match self.options.database {
            DatabaseKind::Sqlite => "DROP TRIGGER audit_log_update; DROP TRIGGER audit_log_delete",
            DatabaseKind::Postgres => "ALTER TABLE audit_log DISABLE TRIGGER USER",
        };
        self.tamper(sql).await.unwrap();
    }

    /// A folder that goes with the test.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The options that it runs with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The options that it runs with from its next start on.
    pub fn reconfigure(&mut self, options: Options) {
        self.options = options;
    }

    /// What it said when it was ready.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What it has written since its last start.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The admin key's text.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where devices connect.
    pub fn mqtt(&self) -> String {
        if let Some(broker) = &self.broker {
            return broker.address();
        }
        let (plain, tls) = (self.ready.mqtt.clone(), self.ready.mqtt_tls.as_ref());
        plain
            .or_else(|| tls.map(|address| format!("mqtts://{address}")))
            .expect("a gateway says where it listens")
    }

    /// What a fleet must be told beside where it connects.
    pub fn fleet_flags(&self) -> Vec<String> {
        let folder = self.broker.as_ref().and_then(ExternalBroker::fleet_folder);
        let flags = folder.map(|folder| {
            let folder = folder.display().to_string();
            // NATS speaks 3.1.1 alone.
            ["--state-dir", &folder, "--mqtt-version", "3"].map(str::to_owned)
        });
        flags.into_iter().flatten().collect()
    }

    /// Where devices connect with TLS.
    pub fn mqtts(&self) -> SocketAddr {
        let address = self.ready.mqtt_tls.as_ref();
        address.expect("it speaks TLS").parse().unwrap()
    }

    /// Its HTTP side, for an administrator. Stays good over restarts.
    pub fn admin(&self) -> Admin {
        match &self.options.authority {
            Some(ca) => Admin::trusting(ca, &self.ready.http, &self.key),
            None => Admin::new(&self.ready.http, &self.key),
        }
    }

    /// Registers a device and returns when it may connect.
    pub async fn register(&self, device: serde_json::Value) -> super::Credentials {
        let credentials = self.admin().register(&[device]).await.remove(0);
        if let Some(broker) = &self.broker {
            broker.admit(&credentials).await;
        }
        self.knows(&credentials.username).await;
        credentials
    }

    /// The broker, for who ends and starts it.
    pub fn broker(&mut self) -> &mut ExternalBroker {
        self.broker.as_mut().expect("devices connect to a broker")
    }

    /// Returns when the MQTT end knows a registered device.
    pub async fn knows(&self, device_id: &str) {
        if let Some(broker) = &self.broker {
            broker.knows(device_id).await;
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the service runs").id()
    }

    /// The most memory that it has ever held, bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the service runs");
        let status = eventually("the service ends", async || {
            child
                .try_wait()
                .unwrap()
                .ok_or_else(|| "still runs".to_owned())
        })
        .await;
        self.child = None;
        self.assert_no_defects();
        status
    }

    /// Ends it as an operator does.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "ended with {status}");
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the service runs");
        child.kill().unwrap();
        child.wait().unwrap();
        self.assert_no_defects();
    }

    /// Starts it again on the same folder and the same ports.
    pub async fn start_again(&mut self) {
        self.run().await;
    }

    fn assert_no_defects(&self) {
        let defects = self.log.defects(&self.options.expected_errors);
        assert!(
            defects.is_empty(),
            "the service's log tells of defects: {defects:#?}"
        );
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the service's log ----");
            for line in self.log.lines() {
                eprintln!("{line}");
            }
        } else {
            self.assert_no_defects();
        }
    }
}

fn ready_line(line: &str) -> Option<Ready> {
    serde_json::from_str(line.strip_prefix("ready ")?).ok()
}
