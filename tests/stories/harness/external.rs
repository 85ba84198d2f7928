//! The external brokers, seen as one.

use std::path::Path;

use super::admin::Credentials;
use super::broker::{BrokerTls, Mosquitto};
use super::nats_mqtt::NatsBroker;
use super::service::MqttEnd;

/// A broker that is not the service's own.
pub enum ExternalBroker {
    Mosquitto(Mosquitto),
    Nats(NatsBroker),
}

impl ExternalBroker {
    /// Starts the one that is asked for, its files below `folder`.
    pub async fn start(end: MqttEnd, folder: &Path, tls: Option<&BrokerTls>) -> Option<Self> {
        match end {
            MqttEnd::Gateway => None,
            MqttEnd::Mosquitto => Some(Self::Mosquitto(Mosquitto::start(folder, tls).await)),
            MqttEnd::Nats => Some(Self::Nats(NatsBroker::start(folder).await)),
        }
    }

    /// Where it listens for devices.
    pub fn address(&self) -> String {
        match self {
            Self::Mosquitto(broker) => broker.address(),
            Self::Nats(broker) => broker.address(),
        }
    }

    /// What the service must be told.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Mosquitto(broker) => broker.settings().into(),
            Self::Nats(broker) => broker.settings().into(),
        }
    }

    /// Tells it of a device that was just registered, where the service does not.
    pub async fn admit(&self, device: &Credentials) {
        match self {
            Self::Mosquitto(_) => {}
            Self::Nats(broker) => broker.admit(&device.username, &device.password).await,
        }
    }

    /// Returns when it knows a registered device.
    pub async fn knows(&self, device_id: &str) {
        match self {
            Self::Mosquitto(broker) => broker.knows(device_id).await,
            Self::Nats(broker) => broker.knows(device_id).await,
        }
    }

    /// Ends it, and what waits in it is kept.
    pub fn stop(&mut self) {
        match self {
            Self::Mosquitto(broker) => broker.stop(),
            Self::Nats(broker) => broker.stop(),
        }
    }

    /// Starts it once more.
    pub async fn start_again(&mut self) {
        match self {
            Self::Mosquitto(broker) => broker.start_again().await,
            Self::Nats(broker) => broker.start_again().await,
        }
    }

    /// Where a fleet has to keep its secrets, so that the broker is told of them.
    pub fn fleet_folder(&self) -> Option<&Path> {
        match self {
            Self::Mosquitto(_) => None,
            Self::Nats(broker) => Some(broker.fleet_folder()),
        }
    }
}
