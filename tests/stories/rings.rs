//! A staged rollout, ring by ring, held up, resumed and cancelled, with every counter at every step.

use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(an_update_in_a_closed_ring_says_why_it_waits: sqlite_gateway, postgres_gateway);
matrix!(canaries_first_then_ring_by_ring_and_no_further_than_told);

/// Devices of each ring: pinned, so that the story does not hang on hashes.
const RINGS: [(&str, usize); 4] = [
    ("canary", 3),
    ("early", 6),
    ("broad", 16),
    ("production", 16),
];
const ALL: u64 = 41;

struct Rings {
    service: Service,
    trust: Trust,
    campaign: String,
    fleet: Vec<(&'static str, Device)>,
}

impl Rings {
    async fn set_up(options: Options) -> Self {
        let service = Service::start(options).await;
        let admin = service.admin();
        let mut devices = Vec::new();
        for (ring, count) in RINGS {
            for n in 0..count {
                let mut device = device_json(&format!("{ring}-{n}"));
                device["ring"] = json!(ring);
                devices.push((ring, device));
            }
        }
        let entries: Vec<Value> = devices.iter().map(|(_, device)| device.clone()).collect();
        let credentials = admin.register(&entries).await;
        service.knows(&credentials.last().unwrap().username).await;
        let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
        let firmware = admin.image("2.1.0").await;
        let spec = json!({
            "name": "ring by ring", "firmware_id": firmware, "deployment_strategy": "staged",
            "max_concurrent_updates": 50, "batch_size": 100, "failure_threshold_percent": 20,
        });
        let campaign = admin.start_campaign(spec).await;
        let mut fleet = Vec::new();
        for ((ring, _), credentials) in devices.iter().zip(&credentials) {
            let device = Device::connect(&service, MqttVersion::V311, credentials).await;
            fleet.push((*ring, device));
        }
        Self {
            service,
            trust,
            campaign,
            fleet,
        }
    }

    /// The devices of a ring.
    fn ring(&mut self, name: &str) -> (Vec<&mut Device>, &Trust) {
        let of_it = self
            .fleet
            .iter_mut()
            .filter(|(ring, _)| *ring == name)
            .map(|(_, device)| device);
        (of_it.collect(), &self.trust)
    }

    /// Every device of a ring is offered the update and takes it.
    async fn completes(&mut self, name: &str) {
        let (devices, trust) = self.ring(name);
        for device in devices {
            device.follows("2.0.0").await;
            let offer = device.offer(trust).await;
            device.complete(&offer).await;
        }
    }

    /// No device of a ring gets an offer, even when it asks.
    async fn waits(&mut self, name: &str) {
        let (devices, _) = self.ring(name);
        for device in devices {
            let reply = device.check("2.0.0", "poll").await;
            assert_eq!(reply["offer"], false, "{name} has to wait: {reply}");
            assert!(!device.has_offer(), "{name} was offered too early");
        }
    }

    async fn counts(&self, what: &str, wanted: [u64; 4]) -> Value {
        let admin = self.service.admin();
        let seen = admin
            .campaign_becomes(&self.campaign, what, |campaign| numbers(campaign) == wanted)
            .await;
        assert_eq!(seen["total_devices"], ALL);
        seen
    }
}

/// Pending, in progress, completed, cancelled.
fn numbers(campaign: &Value) -> [u64; 4] {
    ["pending", "in_progress", "completed", "cancelled"].map(|name| {
        campaign[format!("{name}_devices")]
            .as_u64()
            .unwrap_or(u64::MAX)
    })
}

async fn canaries_first_then_ring_by_ring_and_no_further_than_told(options: Options) {
    let mut rings = Rings::set_up(options).await;
    let admin = rings.service.admin();
    let campaign = rings.campaign.clone();
    for later in ["early", "broad", "production"] {
        rings.waits(later).await;
    }
    rings.completes("canary").await;
    rings
        .counts("through its canaries", [38 - 6, 6, 3, 0])
        .await;
    rings.waits("production").await;
    rings.waits("broad").await;

    // The early ring is under way when the campaign is paused: it may end, the broad one may not begin.
    let paused = admin.act(&campaign, "pause").await.expect(200);
    assert_eq!(paused["status"], "paused");
    rings.completes("early").await;
    rings.counts("through the early ring", [32, 0, 9, 0]).await;
    rings.waits("broad").await;
    assert_eq!(admin.campaign(&campaign).await["status"], "paused");
    admin.act(&campaign, "pause").await.refused(409);

    let resumed = admin.act(&campaign, "resume").await.expect(200);
    assert_eq!(resumed["status"], "in_progress");
    rings.counts("in the broad ring", [16, 16, 9, 0]).await;
    admin.act(&campaign, "pause").await.expect(200);
    rings.completes("broad").await;
    rings.counts("through the broad ring", [16, 0, 25, 0]).await;
    rings.waits("production").await;

    // Cancelled with nothing on its way: what waited is cancelled, what was updated stays so.
    admin.act(&campaign, "cancel").await.expect(200);
    let seen = rings.counts("cancelled", [0, 0, 25, 16]).await;
    assert_eq!(seen["status"], "cancelled");
    assert_eq!(seen["failed_devices"], 0);
    rings.waits("production").await;
    admin.act(&campaign, "resume").await.refused(409);
}

async fn an_update_in_a_closed_ring_says_why_it_waits(options: Options) {
    let rings = Rings::set_up(options).await;
    let admin = rings.service.admin();
    eventually("the update says why it waits", async || {
        let update = admin.updates_of("broad-0").await.remove(0);
        if update["why"].is_null() {
            Err(update.to_string())
        } else {
            Ok(())
        }
    })
    .await;
}
