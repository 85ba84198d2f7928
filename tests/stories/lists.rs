//! Lists by what they are asked for, as people ask over HTTP.

use serde_json::{Value, json};

use crate::harness::{
    Admin, Device, MqttVersion, Options, Service, Trust, device_json, image, image_metadata,
};

matrix!(images_and_campaigns_are_found_by_what_they_are: sqlite_gateway, postgres_gateway);
matrix!(devices_are_found_by_what_they_are_and_say: sqlite_gateway, postgres_gateway);
matrix!(updates_are_found_by_how_far_they_are: sqlite_gateway, postgres_gateway);

const OTA: &str = "/api/v1/ota";

/// One field of each entry of a list, in its order.
async fn listed(admin: &Admin, list: &str, field: &str, query: &str) -> Vec<String> {
    let page = admin
        .get(&format!("{OTA}/{list}?{query}"))
        .await
        .expect(200);
    let entries = page[list].as_array().unwrap();
    assert_eq!(page["count"], entries.len());
    let texts = entries.iter().map(|entry| entry[field].as_str().unwrap());
    texts.map(ToOwned::to_owned).collect()
}

/// What is told to whoever asks so.
async fn complaint(admin: &Admin, path: &str) -> String {
    let refused = admin.get(&format!("{OTA}/{path}")).await.refused(400);
    assert_eq!(refused["code"], "invalid_query");
    refused["detail"].as_str().unwrap().to_owned()
}

async fn images_and_campaigns_are_found_by_what_they_are(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut ids = Vec::new();
    for (version, more) in [
        ("1.0.0", json!({"is_security_update": true})),
        ("1.1.0", json!({"manufacturer": "Other"})),
        (
            "1.2.0-rc.1",
            json!({"is_beta": true, "manufacturer": "Other"}),
        ),
    ] {
        let mut metadata = image_metadata(version);
        let fields = metadata.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let answer = admin.upload(&metadata, "i.bin", image(version)).await;
        ids.push(answer.expect(201)["firmware_id"].clone());
    }
    for (query, versions) in [
        ("manufacturer=Other", &["1.2.0-rc.1", "1.1.0"][..]),
        ("manufacturer=Other&is_beta=false", &["1.1.0"]),
        ("is_security_update=true", &["1.0.0"]),
        ("is_security_update=false&limit=1", &["1.2.0-rc.1"]),
        ("is_beta=true", &["1.2.0-rc.1"]),
        ("device_model=SF-100&offset=1", &["1.1.0", "1.0.0"]),
        ("device_model=SF-200", &[]),
    ] {
        let found = listed(&admin, "firmware", "version", query).await;
        assert_eq!(found, versions, "{query}");
    }

    for (n, priority) in ["low", "normal", "high", "critical"].iter().enumerate() {
        let spec = json!({"name": priority, "firmware_id": ids[n % 2], "priority": priority});
        let campaign = admin.create_campaign(spec).await;
        if n == 3 {
            admin.act(&campaign, "cancel").await.expect(200);
        }
    }
    let first = ids[0].as_str().unwrap();
    for (query, names) in [
        ("status=created".to_owned(), &["high", "normal", "low"][..]),
        ("status=cancelled".to_owned(), &["critical"]),
        ("priority=high".to_owned(), &["high"]),
        ("priority=critical&status=created".to_owned(), &[]),
        (format!("firmware_id={first}"), &["high", "low"]),
    ] {
        let found = listed(&admin, "campaigns", "name", &query).await;
        assert_eq!(found, names, "{query}");
    }
    assert_eq!(
        complaint(&admin, "campaigns?status=begun").await,
        "status must be one of created, in_progress, paused, rolling_back, rolled_back, completed, cancelled, not \"begun\""
    );
    assert_eq!(
        complaint(&admin, "campaigns?priority=1").await,
        "priority must be one of low, normal, high, critical, not \"1\""
    );
    assert_eq!(
        complaint(&admin, "firmware?is_security_update=1").await,
        "is_security_update must be true or false, not \"1\""
    );
}

async fn devices_are_found_by_what_they_are_and_say(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut entries: Vec<Value> = ["a", "b", "c", "d"].map(device_json).to_vec();
    entries[0]["tags"] = json!({"site": "berlin", "floor": "2"});
    entries[1]["tags"] = json!({"site": "k\u{f6}ln"});
    entries[1]["device_type"] = "camera".into();
    entries[2]["manufacturer"] = "Other".into();
    entries[2]["ring"] = "early".into();
    entries[3]["groups"] = json!(["lobby"]);
    let credentials = admin.register(&entries).await;
    let mut talks = Device::connect(&service, MqttVersion::V311, &credentials[3]).await;
    let beat = json!({"version": "2.0.7"});
    talks.report("heartbeat", &beat).await;
    for (query, ids) in [
        ("firmware_version=2.0.0", &["a", "b", "c"][..]),
        ("firmware_version=2.0.7", &["d"]),
        ("device_type=camera", &["b"]),
        ("manufacturer=Acme&device_type=frame", &["a", "d"]),
        ("tag=site", &["a", "b"]),
        ("tag=site=k%C3%B6ln", &["b"]),
        ("tag=floor=3", &[]),
        ("group=lobby", &["d"]),
        ("ring=early", &["c"]),
        ("status=online", &["d"]),
        ("status=never_seen", &["a", "b", "c"]),
        ("status=offline&limit=2&offset=1", &["b", "c"]),
        ("status=online&firmware_version=2.0.0", &[]),
    ] {
        let found = listed(&admin, "devices", "device_id", query).await;
        assert_eq!(found, ids, "{query}");
    }
    let status = admin.get("/api/v1/devices/status?tag=site&device_type=camera");
    assert_eq!(status.await.expect(200)["total_devices"], 1);
    for (query, told) in [
        (
            "status=away",
            "status must be one of online, offline, never_seen, not \"away\"",
        ),
        (
            "ring=red",
            "ring must be one of canary, early, broad, production, not \"red\"",
        ),
        (
            "status=online&online=true",
            "give status or online, not both",
        ),
        (
            "tag==x",
            "tag must be a name, or a name, = and a value, not \"=x\"",
        ),
    ] {
        let path = format!("devices?{query}");
        assert_eq!(complaint(&admin, &path).await, told);
    }
}

async fn updates_are_found_by_how_far_they_are(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get(&format!("{OTA}/trust/root")).await.expect(200));
    let credentials = admin.register(&["a", "b"].map(device_json)).await;
    let (old, new) = (admin.image("2.1.0").await, admin.image("2.2.0").await);
    let spec = json!({"name": "all", "firmware_id": new, "deployment_strategy": "immediate", "priority": "low"});
    let campaign = admin.start_campaign(spec).await;
    let request = json!({"firmware_id": old, "priority": "critical"});
    let path = format!("{OTA}/devices/b/update");
    let single = admin.post(&path, request).await.expect(201);
    let single = single["update_id"].as_str().unwrap();
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    for (seq, phase) in [(1, "accepted"), (2, "downloading")] {
        let report = offer.progress(seq, phase, &json!({}));
        device.report("progress", &report).await;
    }
    let loading = offer.text("update_id");
    for (query, ids) in [
        ("status=downloading".to_owned(), vec![loading]),
        ("status=in_progress".to_owned(), vec![loading]),
        ("status=failed".to_owned(), vec![]),
        (format!("status=scheduled&firmware_id={old}"), vec![single]),
        ("priority=critical".to_owned(), vec![single]),
        (format!("device_id=b&firmware_id={old}"), vec![single]),
        (
            format!("campaign_id={campaign}&status=downloading"),
            vec![loading],
        ),
        (
            format!("firmware_id={new}&device_id=a&priority=low"),
            vec![loading],
        ),
    ] {
        let found = listed(&admin, "updates", "update_id", &query).await;
        assert_eq!(found, ids, "{query}");
    }
    let count = async |path: String| admin.get(&path).await.expect(200)["count"].clone();
    let of_a = format!("{OTA}/devices/a/updates");
    assert_eq!(count(format!("{of_a}?status=downloading")).await, 1);
    assert_eq!(count(format!("{of_a}?status=completed")).await, 0);
    let of_campaign = format!("{OTA}/campaigns/{campaign}/devices");
    assert_eq!(count(format!("{of_campaign}?status=scheduled")).await, 1);
    assert_eq!(count(format!("{of_campaign}?state=in_progress")).await, 1);
    assert_eq!(
        complaint(&admin, "devices/a/updates?status=done").await,
        "status must be one of scheduled, offered, accepted, downloading, verifying, installing, staged, rebooting, \
         pending, in_flight, in_progress, completed, failed, cancelled, not \"done\""
    );
    assert_eq!(
        complaint(&admin, "updates?firmware_id=x").await,
        "firmware_id \"x\" is not valid: it is 32 lower-case hex digits"
    );
}
