//! A device by hand: a stock MQTT client that says and hears what the protocol document tells it to.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::admin::Credentials;
use super::dsse::{Trust, payload};
use super::link::{Event, Link, MqttVersion};
use super::service::Service;
use super::wait::eventually;

/// One device on one connection.
pub struct Device {
    id: String,
    link: Link,
    inbox: VecDeque<(String, Vec<u8>)>,
    acknowledged: usize,
    nonce: u32,
}

/// An offer, verified.
#[derive(Debug, Clone)]
pub struct Offer {
    pub release: Value,
    pub assignment: Value,
    /// The release's payload as it was signed.
    pub release_payload: Vec<u8>,
}

impl Offer {
    /// One of the assignment's texts.
    pub fn text(&self, field: &str) -> &str {
        self.assignment[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {:#}", self.assignment))
    }

    /// A progress report about it.
    pub fn progress(&self, seq: u32, phase: &str, more: Value) -> Value {
        let mut report = json!({
            "update_id": self.text("update_id"), "attempt": self.assignment["attempt"], "seq": seq, "phase": phase,
        });
        report.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        report
    }
}

impl Device {
    /// Connects with its credentials and subscribes to what is its own.
    pub async fn connect(service: &Service, version: MqttVersion, credentials: &Credentials) -> Self {
        let id = credentials.username.clone();
        let mut link = None;
        // A broker reads its password file a moment after it was told to; only then does it let a new device in.
        eventually("the device is let in", async || {
            let mut tried = Link::open(version, &service.mqtt(), &id, &id, &credentials.password);
            match tried.event().await {
                Event::Connected => {
                    link = Some(tried);
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let mut device = Self {
            link: link.unwrap(),
            inbox: VecDeque::new(),
            acknowledged: 0,
            nonce: 0,
            id,
        };
        device.link.subscribe(&device.topic("down/#"));
        loop {
            match device.link.event().await {
                Event::Subscribed(granted) => {
                    assert_eq!(granted, [true]);
                    return device;
                }
                other => device.note(other),
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn topic(&self, rest: &str) -> String {
        format!("ota/v1/{}/{rest}", self.id)
    }

    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Message { topic, payload } => self.inbox.push_back((topic, payload)),
            Event::Acknowledged(good) => {
                assert!(good, "a report of {} was refused", self.id);
                self.acknowledged += 1;
            }
            Event::Closed(why) => panic!("the connection of {} is over: {why}", self.id),
            Event::Connected | Event::Subscribed(_) => {}
        }
    }

    /// Publishes a report, and returns when it is acknowledged.
    pub async fn report(&mut self, kind: &str, body: &Value) {
        let wanted = self.acknowledged + 1;
        self.link.publish(&self.topic(&format!("up/{kind}")), body.to_string());
        while self.acknowledged < wanted {
            let event = self.link.event().await;
            self.note(event);
        }
    }

    /// The next message on one of its topics.
    pub async fn message(&mut self, rest: &str) -> Vec<u8> {
        let topic = self.topic(rest);
        loop {
            if let Some(at) = self.inbox.iter().position(|(known, _)| *known == topic) {
                return self.inbox.remove(at).unwrap().1;
            }
            let event = self.link.event().await;
            self.note(event);
        }
    }

    async fn json(&mut self, rest: &str) -> Value {
        serde_json::from_slice(&self.message(rest).await).unwrap()
    }

    /// Asks whether there is anything for it, and returns the answer to this very question.
    pub async fn check(&mut self, version: &str, reason: &str) -> Value {
        self.nonce += 1;
        let nonce = format!("{}-{}", self.id, self.nonce);
        self.report("check", &json!({ "version": version, "nonce": nonce, "reason": reason })).await;
        loop {
            let reply = self.json("down/reply").await;
            if reply["nonce"] == nonce.as_str() {
                return reply;
            }
        }
    }

    /// The next offer, which must be for it and signed as the trust root wants.
    pub async fn offer(&mut self, trust: &Trust) -> Offer {
        let offer = self.json("down/offer").await;
        let assignment = trust.open(&offer["assignment"], "assignment", "dispatch");
        assert_eq!(assignment["device_id"], self.id.as_str());
        Offer {
            release: trust.open(&offer["release"], "release", "release"),
            assignment,
            release_payload: payload(&offer["release"]),
        }
    }

    /// Goes through the phases that end well, without the bytes: what the service hears is the same.
    pub async fn complete(&mut self, offer: &Offer) {
        let to = offer.release["version"].as_str().unwrap().to_owned();
        for (seq, phase) in (1..).zip(["accepted", "downloading", "verifying", "installing", "rebooting"]) {
            self.report("progress", &offer.progress(seq, phase, json!({}))).await;
        }
        self.report("progress", &offer.progress(6, "completed", json!({ "version": to }))).await;
    }

    /// Takes an offer and fails at its installation.
    pub async fn fail(&mut self, offer: &Offer) {
        self.report("progress", &offer.progress(1, "accepted", json!({}))).await;
        let error = json!({ "error": { "code": "install_failed", "message": "no space in slot b" } });
        self.report("progress", &offer.progress(2, "failed", error)).await;
    }

    /// Whether an offer lies unread.
    pub fn has_offer(&mut self) -> bool {
        while let Some(event) = self.link.pending() {
            self.note(event);
        }
        let topic = self.topic("down/offer");
        self.inbox.iter().any(|(known, _)| *known == topic)
    }

    /// Takes leave.
    pub async fn leave(self) {
        self.link.close().await;
    }
}
