//! A device by hand: a stock MQTT client that says and hears what the protocol document tells it to.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::admin::Credentials;
use super::dsse::{Trust, payload};
use super::link::{Event, Link, MqttVersion};
use super::service::Service;
use super::wait::{DEADLINE, eventually};

/// One device on one connection.
pub struct Device {
    id: String,
    link: Link,
    inbox: VecDeque<(String, Vec<u8>)>,
    acknowledged: usize,
    nonce: u32,
    /// Update and attempt of each offer that was read: what comes again about them is the same said again.
    read: BTreeSet<(String, u64)>,
}

/// An offer, verified.
#[derive(Debug, Clone)]
pub struct Offer {
    pub release: Value,
    pub assignment: Value,
    /// The permit that came with it.
    pub permit: Option<Value>,
    /// The release's payload as it was signed.
    pub release_payload: Vec<u8>,
}

impl Offer {
    /// One of the assignment's texts.
    pub fn text(&self, field: &str) -> &str {
        self.assignment[field]
            .as_str()
            .unwrap_or_else(|| panic!("{field} is missing in {:#}", self.assignment))
    }

    /// A progress report about it.
    pub fn progress(&self, seq: u32, phase: &str, more: &Value) -> Value {
        let mut report = json!({
            "update_id": self.text("update_id"), "attempt": self.assignment["attempt"], "seq": seq, "phase": phase,
        });
        report
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        report
    }
}

impl Device {
    /// Connects with its credentials and subscribes to what is its own.
    pub async fn connect(
        service: &Service,
        version: MqttVersion,
        credentials: &Credentials,
    ) -> Self {
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
            read: BTreeSet::new(),
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
        self.link
            .publish(&self.topic(&format!("up/{kind}")), body.to_string());
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
        self.report(
            "check",
            &json!({ "version": version, "nonce": nonce, "reason": reason }),
        )
        .await;
        loop {
            let reply = self.json("down/reply").await;
            if reply["nonce"] == nonce.as_str() {
                return reply;
            }
        }
    }

    /// Asks until it is told to wait for a reason that names `why`; until then it must not be told that there is an
    /// offer, but the service may not have thought of it yet.
    pub async fn refusal(&mut self, version: &str, why: &str) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let reply = self.check(version, "poll").await;
            assert_eq!(reply["offer"], false, "{} has to wait: {reply}", self.id);
            assert!(!self.has_offer(), "{} was offered too early", self.id);
            if reply["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(why))
            {
                return reply;
            }
            assert!(Instant::now() < end, "never told why ({why}): {reply}");
        }
    }

    /// Asks until it is told that an offer follows.
    pub async fn follows(&mut self, version: &str) {
        let end = Instant::now() + DEADLINE;
        while self.check(version, "poll").await["offer"] != true {
            assert!(
                Instant::now() < end,
                "{} is never told of an offer",
                self.id
            );
        }
    }

    /// The next offer that is new, which must be for it and signed as the trust root wants.
    pub async fn offer(&mut self, trust: &Trust) -> Offer {
        loop {
            let offer = self.json("down/offer").await;
            let assignment = trust.open(&offer["assignment"], "assignment", "dispatch");
            let permit = offer.get("permit");
            let permit = permit.map(|it| trust.open(it, "rollback-permit", "release"));
            assert_eq!(assignment["device_id"], self.id.as_str());
            if !self.read.insert(identity(&assignment)) {
                continue;
            }
            return Offer {
                release: trust.open(&offer["release"], "release", "release"),
                assignment,
                permit,
                release_payload: payload(&offer["release"]),
            };
        }
    }

    /// Goes through the phases that end well, without the bytes: what the service hears is the same.
    pub async fn complete(&mut self, offer: &Offer) {
        let to = offer.release["version"].as_str().unwrap().to_owned();
        for (seq, phase) in (1..).zip([
            "accepted",
            "downloading",
            "verifying",
            "installing",
            "rebooting",
        ]) {
            self.report("progress", &offer.progress(seq, phase, &json!({})))
                .await;
        }
        self.report(
            "progress",
            &offer.progress(6, "completed", &json!({ "version": to })),
        )
        .await;
    }

    /// Takes an offer and fails at its installation.
    pub async fn fail(&mut self, offer: &Offer) {
        self.report("progress", &offer.progress(1, "accepted", &json!({})))
            .await;
        let error =
            json!({ "error": { "code": "install_failed", "message": "no space in slot b" } });
        self.report("progress", &offer.progress(2, "failed", &error))
            .await;
    }

    /// Whether a new offer lies unread.
    pub fn has_offer(&mut self) -> bool {
        while let Some(event) = self.link.pending() {
            self.note(event);
        }
        let topic = self.topic("down/offer");
        let offers = self.inbox.iter().filter(|(known, _)| *known == topic);
        let mut read = offers.map(|(_, offer)| {
            let offer: Value = serde_json::from_slice(offer).unwrap();
            let assignment: Value = serde_json::from_slice(&payload(&offer["assignment"])).unwrap();
            self.read.contains(&identity(&assignment))
        });
        read.any(|is_read| !is_read)
    }

    /// Takes leave.
    pub async fn leave(self) {
        self.link.close().await;
    }
}

/// What an offer is about.
fn identity(assignment: &Value) -> (String, u64) {
    let update = assignment["update_id"].as_str().unwrap().to_owned();
    (update, assignment["attempt"].as_u64().unwrap())
}
