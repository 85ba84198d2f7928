//! A staged rollout, ring by ring, held up, resumed and cancelled, with every counter at every step.

use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(an_update_in_a_closed_ring_says_why_it_waits: sqlite_gateway, postgres_gateway);
matrix!(rings_are_settings_and_a_campaign_keeps_its_own: sqlite_gateway, postgres_gateway);
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

async fn rings_are_settings_and_a_campaign_keeps_its_own(options: Options) {
    const RINGS: &str = "/api/v1/rings";
    let service = Service::start(options).await;
    let admin = service.admin();
    let shares = |of: [f64; 4]| {
        let [canary, early, broad, production] = of;
        json!({ "rings": { "canary": canary, "early": early, "broad": broad, "production": production } })
    };
    let mut fresh = shares([5.0, 25.0, 75.0, 100.0]);
    fresh["updated_at"] = Value::Null;
    fresh["updated_by"] = Value::Null;
    fresh["revision"] = json!(0);
    assert_eq!(admin.get(RINGS).await.expect(200), fresh);
    let pinned = ["canary", "early", "broad", "production"].map(|ring| {
        let mut device = device_json(ring);
        device["ring"] = json!(ring);
        device
    });
    admin.register(&pinned).await;
    let firmware = admin.image("2.1.0").await;
    let create = async |name: &str| {
        let spec = json!({ "name": name, "firmware_id": firmware });
        admin.create_campaign(spec).await
    };
    let before = create("before").await;
    let set = admin
        .put(RINGS, shares([1.0, 10.5, 50.0, 100.0]))
        .await
        .expect(200);
    insta::allow_duplicates! {
        insta::assert_json_snapshot!(set, { ".updated_at" => "[time]" }, @r#"
        {
          "revision": 1,
          "rings": {
            "broad": 50.0,
            "canary": 1.0,
            "early": 10.5,
            "production": 100.0
          },
          "updated_at": "[time]",
          "updated_by": "admin"
        }
        "#);
    }
    assert_eq!(admin.get(RINGS).await.expect(200), set);
    let after = create("after").await;
    for (campaign, ends) in [
        (&before, [5.0, 25.0, 75.0, 100.0]),
        (&after, [1.0, 10.5, 50.0, 100.0]),
    ] {
        let seen = admin.campaign(campaign).await;
        let stages = seen["stages"].as_array().unwrap().iter();
        let percents: Vec<f64> = stages.map(|s| s["percent"].as_f64().unwrap()).collect();
        assert_eq!(percents, ends);
        // Whoever is pinned to a ring is in it, by the shares of each campaign.
        for ring in ["canary", "early", "broad", "production"] {
            let path = format!("/api/v1/ota/campaigns/{campaign}/targets?stage={ring}");
            let targets = admin.get(&path).await.expect(200);
            let devices = targets["targets"].as_array().unwrap();
            assert_eq!(devices.len(), 1, "{targets:#}");
            assert_eq!(devices[0]["device_id"], ring);
        }
    }
    admin.act(&after, "start").await.expect(200);
    let stages = &admin.campaign(&after).await["stages"];
    assert!(
        stages
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["devices"] == 1),
        "{stages:#}"
    );

    for (wrong, code) in [
        (shares([25.0, 5.0, 75.0, 100.0]), "invalid_rings"),
        (shares([0.0, 5.0, 75.0, 100.0]), "invalid_rings"),
        (shares([1.0, 1.004, 75.0, 100.0]), "invalid_rings"),
        (shares([1.0, 5.0, 75.0, 99.0]), "invalid_rings"),
        (shares([1.0, 5.0, 75.0, 1e9]), "invalid_rings"),
        (json!({ "rings": { "canary": 5 } }), "invalid_json"),
    ] {
        assert_eq!(admin.put(RINGS, wrong).await.refused(400)["code"], code);
    }
    let (_, operator) = crate::identity::key(&service, "night", "operator").await;
    operator
        .put(RINGS, shares([2.0, 3.0, 4.0, 100.0]))
        .await
        .refused(403);
    assert_eq!(operator.get(RINGS).await.expect(200), set);
}
