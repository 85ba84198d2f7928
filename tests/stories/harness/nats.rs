//! A `nats-server` with JetStream, and a client that reads and writes as other services of the house do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, Context, Message};
use futures_util::StreamExt as _;
use serde_json::Value;

use super::wait::{eventually, within};

/// The stream of the service's events.
const EVENTS: &str = "OTA_EVENTS";

/// A running server, ended with the test.
pub struct NatsServer {
    child: Option<Child>,
    folder: PathBuf,
    port: String,
}

impl NatsServer {
    /// Starts one on a free port, its files below `folder`.
    pub async fn start(folder: &Path) -> Self {
        let folder = folder.join("nats");
        fs::create_dir_all(&folder).unwrap();
        let mut server = Self {
            child: None,
            folder,
            port: "-1".to_owned(),
        };
        server.start_again().await;
        server
    }

    /// Starts it once more, on the same port and with what it has kept.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let log = fs::File::create(self.folder.join("log")).unwrap();
        let mut child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &self.port, "-js", "-sd"])
            .arg(self.folder.join("jetstream"))
            .arg("--ports_file_dir")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nats-server is installed");
        let ports = self
            .folder
            .join(format!("nats-server_{}.ports", child.id()));
        let url = eventually("nats-server says where it listens", async || {
            if let Some(status) = child.try_wait().unwrap() {
                let said = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("nats-server ended with {status}: {said}");
            }
            let text = fs::read_to_string(&ports).map_err(|error| error.to_string())?;
            let ports: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            Ok(ports["nats"][0].as_str().unwrap().to_owned())
        })
        .await;
        let (_, port) = url.rsplit_once(':').unwrap();
        port.clone_into(&mut self.port);
        self.child = Some(child);
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What the service must be told.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Another service's client.
    pub async fn client(&self) -> Context {
        jetstream::new(async_nats::connect(self.url()).await.unwrap())
    }

    /// The events of the service's stream from its beginning up to the first of this type, each with its subject.
    pub async fn events_up_to(&self, last: &str) -> Vec<(String, Value)> {
        let client = self.client().await;
        let stream = eventually("the service has made its stream", async || {
            let found = client.get_stream(EVENTS).await;
            found.map_err(|error| error.to_string())
        })
        .await;
        let consumer = stream.create_consumer(OrderedConfig::default()).await;
        let mut messages = consumer.unwrap().messages().await.unwrap();
        let mut events = Vec::new();
        loop {
            let message: Message = within("the next event arrives at NATS", messages.next())
                .await
                .expect("the stream goes on")
                .unwrap();
            let event = serde_json::from_slice(&message.payload).unwrap();
            let subject = message.subject.to_string();
            let is_last = subject == last;
            events.push((subject, event));
            if is_last {
                return events;
            }
        }
    }

    /// Publishes to a stream, and returns when the server has it.
    pub async fn publish(&self, subject: &'static str, payload: impl Into<Vec<u8>>) {
        let payload: Vec<u8> = payload.into();
        let client = self.client().await;
        // A server that has just started again knows its streams a moment later.
        eventually("NATS takes a message", async || {
            let sent = client.publish(subject, payload.clone().into()).await;
            sent.unwrap().await.map_err(|error| error.to_string())
        })
        .await;
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
