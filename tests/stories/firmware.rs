//! An image after its upload: changed, deployed ring by ring, and taken out of use.

use serde_json::{Value, json};

use crate::bus::Subscriber;
use crate::harness::{
    Admin, Answer, Device, MqttVersion, Options, Service, Trust, device_json, eventually, image,
    image_metadata,
};
use crate::identity::key;

matrix!(an_image_out_of_use_leaves_the_lists_and_is_offered_to_nobody: sqlite_gateway, postgres_gateway);
matrix!(an_image_in_use_is_kept_unless_an_admin_insists: sqlite_gateway, postgres_gateway);
matrix!(devices_go_back_to_an_image_that_is_out_of_use: sqlite_gateway, postgres_gateway);
matrix!(what_is_not_signed_of_an_image_can_be_changed: sqlite_gateway, postgres_gateway);
matrix!(one_image_has_the_paths_of_both_documents: sqlite_gateway);
matrix!(an_image_goes_as_far_as_it_is_promoted: sqlite_gateway, postgres_gateway);
matrix!(two_deployments_at_once_are_one_campaign: sqlite_gateway, postgres_gateway);

const FIRMWARE: &str = "/api/v1/ota/firmware";
const UPDATE: &str = "/api/v1/ota/devices/frame-1/update";

fn code(answer: Answer, status: u16) -> String {
    answer.refused(status)["code"].as_str().unwrap().to_owned()
}

async fn listed(admin: &Admin, query: &str) -> Vec<Value> {
    let list = admin.get(&format!("{FIRMWARE}?{query}")).await.expect(200);
    list["firmware"].as_array().unwrap().clone()
}

async fn trust(admin: &Admin) -> Trust {
    Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200))
}

async fn an_image_out_of_use_leaves_the_lists_and_is_offered_to_nobody(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let mut subscriber = Subscriber::start(&service, "#").await;
    let id = admin.image("2.1.0").await;
    let waiting = json!({ "name": "not begun", "firmware_id": id });
    let waiting = admin.create_campaign(waiting).await;
    let path = format!("{FIRMWARE}/{id}");
    assert_eq!(admin.get(&path).await.expect(200)["status"], "active");
    let link = admin.get(&format!("{path}/download")).await.expect(200);
    let link = admin.client().get(link["url"].as_str().unwrap());
    let served = link.try_clone().unwrap().send().await.unwrap();
    assert_eq!(served.status(), 200);
    eventually(
        "the link is counted, which would change what follows",
        async || {
            let image = admin.get(&path).await.expect(200);
            let counted = image["download_count"] == 1;
            counted.then_some(()).ok_or(image.to_string())
        },
    )
    .await;
    let gone = admin.delete(&path).await.expect(200);
    assert_eq!(gone["status"], "deprecated");
    let recalled = link.send().await.unwrap();
    assert_eq!(recalled.status(), 409, "a link from before serves no more");
    let recalled: Value = recalled.json().await.unwrap();
    assert_eq!(recalled["code"], "firmware_deprecated");
    assert!(gone["deprecated_at"].is_string(), "{gone:#}");
    loop {
        let event = subscriber.event().await.1;
        if event["event_type"] == "firmware.deprecated" {
            assert_eq!(event["data"]["firmware_id"], id.as_str());
            break;
        }
    }
    assert!(listed(&admin, "").await.is_empty());
    assert_eq!(
        listed(&admin, "include_deprecated=true").await,
        std::slice::from_ref(&gone)
    );
    assert_eq!(
        admin.get(&path).await.expect(200),
        gone,
        "it is kept for the record"
    );

    let asked = json!({ "firmware_id": id });
    let created = json!({ "name": "too late", "firmware_id": id });
    let bulk = json!({ "firmware_id": id, "device_ids": ["frame-1"] });
    for (what, answer) in [
        ("delete", admin.delete(&path).await),
        ("change", admin.put(&path, json!({ "is_beta": true })).await),
        ("link", admin.get(&format!("{path}/download")).await),
        (
            "deploy",
            admin
                .post(&format!("{path}/deploy"), json!({ "ring": "canary" }))
                .await,
        ),
        ("start", admin.act(&waiting, "start").await),
        ("create", admin.post("/api/v1/ota/campaigns", created).await),
        ("update", admin.post(UPDATE, asked).await),
        (
            "bulk",
            admin.post("/api/v1/ota/devices/bulk/update", bulk).await,
        ),
        (
            "upload",
            admin
                .upload(&image_metadata("2.1.0"), "image.bin", image("2.1.0"))
                .await,
        ),
    ] {
        assert_eq!(code(answer, 409), "firmware_deprecated", "{what}");
    }
    assert_eq!(admin.campaign(&waiting).await["status"], "created");
    let unknown = format!("{FIRMWARE}/{}", "0".repeat(32));
    assert_eq!(code(admin.delete(&unknown).await, 404), "not_found");
    assert_eq!(
        code(admin.delete(&format!("{path}?now=1")).await, 400),
        "invalid_query"
    );
}

async fn an_image_in_use_is_kept_unless_an_admin_insists(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let names = ["frame-1", "frame-2", "frame-3"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows("frame-3").await;
    let id = admin.image("2.1.0").await;
    let spec = json!({
        "name": "under way", "firmware_id": id, "target_devices": ["frame-2"], "deployment_strategy": "immediate",
    });
    let campaign = admin.start_campaign(spec).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    device.check("2.0.0", "boot").await;
    let made = admin
        .post(UPDATE, json!({ "firmware_id": id }))
        .await
        .expect(201);
    let update = made["update_id"].as_str().unwrap();
    let offer = device.offer(&trust).await;
    device
        .report("progress", &offer.progress(1, "accepted", &json!({})))
        .await;
    let path = "/api/v1/ota/devices/frame-3/update";
    let made = admin
        .post(path, json!({ "firmware_id": id }))
        .await
        .expect(201);
    let waits = made["update_id"].as_str().unwrap();

    let path = format!("{FIRMWARE}/{id}");
    let refused = admin.delete(&path).await.refused(409);
    assert_eq!(refused["code"], "firmware_in_use");
    let detail = refused["detail"].as_str().unwrap();
    for user in [campaign.as_str(), update, waits, "force=true"] {
        assert!(detail.contains(user), "{user} is not in {detail}");
    }
    let forced = format!("{path}?force=true");
    let (_, uploader) = key(&service, "ci", "uploader").await;
    assert_eq!(code(uploader.delete(&path).await, 409), "firmware_in_use");
    assert_eq!(code(uploader.delete(&forced).await, 403), "forbidden");
    let (_, viewer) = key(&service, "wall", "viewer").await;
    assert_eq!(code(viewer.delete(&path).await, 403), "forbidden");
    assert!(admin.get(&path).await.expect(200)["deprecated_at"].is_null());

    admin.delete(&forced).await.expect(200);
    let seen = admin.campaign(&campaign).await;
    assert_eq!(
        (&seen["status"], &seen["cancelled_devices"]),
        (&json!("cancelled"), &json!(1))
    );
    admin.update_becomes(waits, "cancelled").await;
    let command: Value = serde_json::from_slice(&device.message("down/command").await).unwrap();
    let command = trust.open(&command, "command", "dispatch");
    assert_eq!(
        (&command["command"], &command["update_id"]),
        (&json!("cancel"), &json!(update))
    );
    device
        .report("progress", &offer.progress(2, "cancelled", &json!({})))
        .await;
    admin.update_becomes(update, "cancelled").await;
    let reply = device.check("2.0.0", "poll").await;
    assert_eq!(reply["offer"], false, "{reply}");
}

async fn devices_go_back_to_an_image_that_is_out_of_use(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let credentials = service.register(device_json("frame-1")).await;
    let (old, new) = (admin.image("2.0.0").await, admin.image("2.1.0").await);
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let spec = json!({ "name": "forward", "firmware_id": new, "deployment_strategy": "immediate" });
    let campaign = admin.start_campaign(spec).await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    let done = |c: &Value| c["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;
    device.check("2.1.0", "boot").await;
    for image in [&old, &new] {
        admin
            .delete(&format!("{FIRMWARE}/{image}"))
            .await
            .expect(200);
    }
    admin.act(&campaign, "rollback").await.expect(200);
    let offer = device.offer(&trust).await;
    assert_eq!(
        (offer.text("action"), &offer.release["version"]),
        ("rollback", &json!("2.0.0"))
    );
    let bytes = reqwest::get(offer.assignment["urls"][0].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(bytes.bytes().await.unwrap(), image("2.0.0"));
    device.complete(&offer).await;
    let back = |c: &Value| c["status"] == "rolled_back" && c["rollback"]["completed"] == 1;
    admin.campaign_becomes(&campaign, "rolled back", back).await;
}

async fn what_is_not_signed_of_an_image_can_be_changed(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let id = admin.image("2.1.0").await;
    let path = format!("/api/v1/firmware/{id}");
    let change = json!({ "description": "for all", "release_notes": "# New", "is_beta": true, "min_battery_percent": 30 });
    let changed = admin.put(&path, change).await.expect(200);
    assert_eq!(
        (
            &changed["description"],
            &changed["release_notes"],
            &changed["is_beta"],
            &changed["min_battery_percent"]
        ),
        (&json!("for all"), &json!("# New"), &json!(true), &json!(30))
    );
    assert_eq!(
        listed(&admin, "is_beta=true").await,
        std::slice::from_ref(&changed)
    );
    let cleared = json!({ "description": null });
    let path = format!("{FIRMWARE}/{id}");
    let changed = admin.put(&path, cleared).await.expect(200);
    assert_eq!(
        (&changed["description"], &changed["release_notes"]),
        (&Value::Null, &json!("# New"))
    );
    assert_eq!(admin.get(&path).await.expect(200), changed);
    // New campaigns ask of devices what the image asks by now.
    let spec = json!({ "name": "later", "firmware_id": id });
    let campaign = admin.create_campaign(spec).await;
    assert_eq!(
        admin.campaign(&campaign).await["requires"]["min_battery_percent"],
        30
    );

    for field in [
        "version",
        "checksum_sha256",
        "is_security_update",
        "device_model",
    ] {
        let refused = admin.put(&path, json!({ field: "x" })).await.refused(422);
        assert_eq!(refused["code"], "signed_field");
        assert!(
            refused["detail"].as_str().unwrap().starts_with(field),
            "{refused:#}"
        );
    }
    for (wrong, told) in [
        (json!({ "min_battery_percent": 101 }), "invalid_metadata"),
        (json!({ "min_free_storage_bytes": -1 }), "invalid_metadata"),
        (
            json!({ "description": "x".repeat(16_385) }),
            "invalid_metadata",
        ),
        (json!({ "is_beta": "yes" }), "invalid_json"),
        (json!({ "colour": "red" }), "invalid_json"),
        (json!([]), "invalid_json"),
    ] {
        assert_eq!(code(admin.put(&path, wrong).await, 400), told);
    }
    let (_, operator) = key(&service, "night", "operator").await;
    assert_eq!(code(operator.put(&path, json!({})).await, 403), "forbidden");
    assert_eq!(admin.get(&path).await.expect(200), changed);
}

async fn one_image_has_the_paths_of_both_documents(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let file = reqwest::multipart::Part::bytes(image("2.1.0")).file_name("image.bin");
    let form = reqwest::multipart::Form::new()
        .text("metadata", image_metadata("2.1.0").to_string())
        .part("file", file);
    let request = admin.client().post(admin.url("/api/v1/firmware"));
    let made = admin.send(request.multipart(form)).await.expect(201);
    let id = made["firmware_id"].as_str().unwrap();
    for path in ["/api/v1/firmware", FIRMWARE] {
        assert_eq!(admin.get(&format!("{path}/{id}")).await.expect(200), made);
        let list = admin.get(path).await.expect(200);
        assert_eq!(list["firmware"], json!([made]));
    }
    let link = admin
        .get(made["file_url"].as_str().unwrap())
        .await
        .expect(200);
    for field in ["checksum_md5", "checksum_sha256", "file_size"] {
        assert_eq!(link[field], made[field]);
    }
    let bytes = reqwest::get(link["url"].as_str().unwrap()).await.unwrap();
    assert_eq!(bytes.bytes().await.unwrap(), image("2.1.0"));
    admin
        .delete(&format!("/api/v1/firmware/{id}"))
        .await
        .expect(200);
    assert!(listed(&admin, "").await.is_empty());
}

async fn an_image_goes_as_far_as_it_is_promoted(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let rings = ["canary", "early", "production"];
    let pinned = rings.map(|ring| {
        let mut device = device_json(ring);
        device["ring"] = json!(ring);
        device
    });
    let credentials = admin.register(&pinned).await;
    service.knows("production").await;
    let id = admin.image("2.1.0").await;
    let path = format!("/api/v1/firmware/{id}/deploy");
    let deploy = async |ring: &str| admin.post(&path, json!({ "ring": ring })).await;
    let mut devices = Vec::new();
    for credentials in &credentials {
        devices.push(Device::connect(&service, MqttVersion::V311, credentials).await);
    }
    let [canary, early, production] = devices.as_mut_slice() else {
        panic!("three devices are connected")
    };

    let made = deploy("canary").await.expect(201);
    assert_eq!(
        (
            &made["status"],
            &made["up_to_stage"],
            &made["total_devices"]
        ),
        (&json!("in_progress"), &json!("canary"), &json!(3))
    );
    let campaign = made["campaign_id"].as_str().unwrap().to_owned();
    canary.follows("2.0.0").await;
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    let held = |c: &Value| c["completed_devices"] == 1 && c["waits"][0]["code"] == "not_promoted";
    let seen = admin
        .campaign_becomes(&campaign, "held at canary", held)
        .await;
    assert_eq!(
        seen["waits"][0]["detail"],
        "the campaign goes no further than canary before it is promoted"
    );
    early.refusal("2.0.0", "early").await;

    let promoted = deploy("early").await.expect(200);
    assert_eq!(
        (&promoted["campaign_id"], &promoted["up_to_stage"]),
        (&json!(campaign), &json!("early"))
    );
    assert_eq!(
        deploy("early").await.expect(200)["campaign_id"],
        campaign.as_str()
    );
    early.follows("2.0.0").await;
    let offer = early.offer(&trust).await;
    assert_eq!(code(deploy("canary").await, 409), "wrong_state");
    early.complete(&offer).await;
    production.refusal("2.0.0", "production").await;

    admin.act(&campaign, "pause").await.expect(200);
    assert_eq!(code(deploy("production").await, 409), "wrong_state");
    admin.act(&campaign, "resume").await.expect(200);
    // Past a ring without devices.
    deploy("production").await.expect(200);
    production.follows("2.0.0").await;
    let offer = production.offer(&trust).await;
    production.complete(&offer).await;
    let done = |c: &Value| c["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;

    assert_eq!(code(deploy("moon").await, 400), "invalid_json");
    let unknown = format!("/api/v1/firmware/{}/deploy", "0".repeat(32));
    let answer = admin.post(&unknown, json!({ "ring": "canary" })).await;
    assert_eq!(code(answer, 404), "not_found");
    assert_eq!(
        code(deploy("canary").await, 409),
        "no_devices",
        "everybody has it"
    );
    service.register(device_json("newcomer")).await;
    let again = deploy("canary").await.expect(201);
    assert_ne!(
        again["campaign_id"],
        campaign.as_str(),
        "the last one is over"
    );
}

async fn two_deployments_at_once_are_one_campaign(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let id = admin.image("2.1.0").await;
    let path = format!("{FIRMWARE}/{id}/deploy");
    let deploy = |ring: &str| admin.post(&path, json!({ "ring": ring }));
    let (one, other) = tokio::join!(deploy("canary"), deploy("broad"));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    // Whoever comes second promotes it, unless the first went further already.
    match statuses {
        [200, 201] => assert_eq!(one.body["campaign_id"], other.body["campaign_id"]),
        [201, 409] => assert_eq!(one.body["code"], "wrong_state", "{:#}", other.body),
        _ => panic!("{:#} {:#}", one.body, other.body),
    }
    let all = admin.get("/api/v1/ota/campaigns").await.expect(200);
    assert_eq!(all["count"], 1);
}
