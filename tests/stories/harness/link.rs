//! A stock MQTT client, of either version, seen as one stream of what happens on it.

use std::time::Duration;

use rumqttc::{
    AsyncClient, EventLoop, Incoming, MqttOptions, Packet, QoS, SubscribeReasonCode, v5,
};
use tokio::sync::mpsc;

use super::wait::within;

/// Which version of the protocol the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    V311,
    V5,
}

/// What happens on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Connected,
    /// For each filter, whether it was granted.
    Subscribed(Vec<bool>),
    /// A publish of ours was acknowledged; whether with success (MQTT 5 can say no).
    Acknowledged(bool),
    Message {
        topic: String,
        payload: Vec<u8>,
    },
    /// The connection is over; this client does not connect again.
    Closed(String),
}

enum Client {
    V311(AsyncClient),
    V5(v5::AsyncClient),
}

/// One connection.
pub struct Link {
    client: Client,
    events: mpsc::UnboundedReceiver<Event>,
}

/// Larger than any packet of the protocol, a chunk of 64 KiB with its topic included.
const MAX_PACKET: u32 = 128 * 1024;

/// Requests that the client holds before it sends them.
const REQUESTS: usize = 128;

impl Link {
    /// Begins to connect; the first event says how it went.
    pub fn open(
        version: MqttVersion,
        address: &str,
        client_id: &str,
        user: &str,
        password: &str,
    ) -> Self {
        Self::open_with(
            version,
            address,
            client_id,
            user,
            password,
            Duration::from_secs(30),
        )
    }

    pub fn open_with(
        version: MqttVersion,
        address: &str,
        client_id: &str,
        user: &str,
        password: &str,
        keep_alive: Duration,
    ) -> Self {
        let (host, port) = address.rsplit_once(':').unwrap();
        let port = port.parse().unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let client = match version {
            MqttVersion::V311 => {
                let mut options = MqttOptions::new(client_id, host, port);
                options
                    .set_credentials(user, password)
                    .set_keep_alive(keep_alive);
                options.set_max_packet_size(MAX_PACKET as usize, MAX_PACKET as usize);
                let (client, events) = AsyncClient::new(options, REQUESTS);
                tokio::spawn(poll_v311(events, sender));
                Client::V311(client)
            }
            MqttVersion::V5 => {
                let mut options = v5::MqttOptions::new(client_id, host, port);
                options
                    .set_credentials(user, password)
                    .set_keep_alive(keep_alive);
                options.set_max_packet_size(Some(MAX_PACKET));
                let (client, events) = v5::AsyncClient::new(options, REQUESTS);
                tokio::spawn(poll_v5(events, sender));
                Client::V5(client)
            }
        };
        Self { client, events }
    }

    /// The next thing that happens.
    pub async fn event(&mut self) -> Event {
        let event = within(
            "something happens on the MQTT connection",
            self.events.recv(),
        )
        .await;
        event.unwrap_or_else(|| Event::Closed("closed before".to_owned()))
    }

    /// What has happened and was not looked at.
    pub fn pending(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    pub fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        match &self.client {
            Client::V311(client) => client
                .try_publish(topic, QoS::AtLeastOnce, false, payload)
                .unwrap(),
            Client::V5(client) => {
                client
                    .try_publish(
                        topic,
                        v5::mqttbytes::QoS::AtLeastOnce,
                        false,
                        payload.into(),
                    )
                    .unwrap();
            }
        }
    }

    pub fn subscribe(&self, filter: &str) {
        match &self.client {
            Client::V311(client) => client.try_subscribe(filter, QoS::AtLeastOnce).unwrap(),
            Client::V5(client) => client
                .try_subscribe(filter, v5::mqttbytes::QoS::AtLeastOnce)
                .unwrap(),
        }
    }

    /// Takes leave in good order.
    pub async fn close(mut self) {
        match &self.client {
            Client::V311(client) => client.try_disconnect().unwrap(),
            Client::V5(client) => client.try_disconnect().unwrap(),
        }
        while !matches!(self.event().await, Event::Closed(_)) {}
    }
}

async fn poll_v311(mut events: EventLoop, sender: mpsc::UnboundedSender<Event>) {
    loop {
        let event = match events.poll().await {
            Ok(rumqttc::Event::Incoming(packet)) => match packet {
                Packet::ConnAck(_) => Event::Connected,
                Incoming::SubAck(ack) => Event::Subscribed(
                    ack.return_codes
                        .iter()
                        .map(|code| *code != SubscribeReasonCode::Failure)
                        .collect(),
                ),
                Incoming::PubAck(_) => Event::Acknowledged(true),
                Incoming::Publish(publish) => Event::Message {
                    topic: publish.topic,
                    payload: publish.payload.to_vec(),
                },
                _ => continue,
            },
            Ok(rumqttc::Event::Outgoing(_)) => continue,
            Err(error) => Event::Closed(error.to_string()),
        };
        let over = matches!(event, Event::Closed(_));
        if sender.send(event).is_err() || over {
            return;
        }
    }
}

async fn poll_v5(mut events: v5::EventLoop, sender: mpsc::UnboundedSender<Event>) {
    use v5::mqttbytes::v5::{Packet, PubAckReason, SubscribeReasonCode};
    loop {
        let event = match events.poll().await {
            Ok(v5::Event::Incoming(packet)) => match packet {
                Packet::ConnAck(_) => Event::Connected,
                Packet::SubAck(ack) => Event::Subscribed(
                    ack.return_codes
                        .iter()
                        .map(|code| matches!(code, SubscribeReasonCode::Success(_)))
                        .collect(),
                ),
                Packet::PubAck(ack) => Event::Acknowledged(matches!(
                    ack.reason,
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                )),
                Packet::Publish(publish) => Event::Message {
                    topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
                    payload: publish.payload.to_vec(),
                },
                _ => continue,
            },
            Ok(v5::Event::Outgoing(_)) => continue,
            Err(error) => Event::Closed(error.to_string()),
        };
        let over = matches!(event, Event::Closed(_));
        if sender.send(event).is_err() || over {
            return;
        }
    }
}
