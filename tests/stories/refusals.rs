//! What is refused because of what has happened before, each refusal by its code; and the failure rate that leads to some of them.

use serde_json::{Value, json};

use crate::harness::{
    Admin, Device, MqttVersion, Options, Service, Trust, device_json, image, image_metadata,
};

matrix!(an_image_for_another_model_is_not_for_this_device: sqlite_gateway, postgres_gateway);
matrix!(what_failed_in_a_campaign_that_ended_is_not_tried_again: sqlite_gateway, postgres_gateway);
matrix!(an_image_out_of_use_is_refused_wherever_it_is_asked_for: sqlite_gateway);
matrix!(what_was_taken_back_is_not_begun_again: sqlite_gateway);
matrix!(nobody_goes_back_to_an_image_that_is_not_there: sqlite_gateway, postgres_gateway);

fn code(refused: &Value) -> &str {
    refused["code"].as_str().unwrap()
}

async fn trust(admin: &Admin) -> Trust {
    Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200))
}

async fn an_image_for_another_model_is_not_for_this_device(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    admin.register(&[device_json("frame-1")]).await;
    let mut metadata = image_metadata("2.1.0");
    metadata["device_model"] = "SF-200".into();
    let uploaded = admin.upload(&metadata, "image.bin", image("2.1.0")).await;
    let firmware = uploaded.expect(201)["firmware_id"].clone();
    let request = json!({ "firmware_id": firmware });
    let path = "/api/v1/ota/devices/frame-1/update";
    let refused = admin.post(path, request).await.refused(409);
    assert_eq!(code(&refused), "wrong_model");
    assert_eq!(
        refused["detail"],
        "device frame-1 is a SF-100 and the firmware is for SF-200"
    );
    let forced = json!({ "firmware_id": firmware, "force_update": true });
    let refused = admin.post(path, forced).await.refused(409);
    assert_eq!(code(&refused), "wrong_model", "no force makes it fit");
    let bulk = json!({ "firmware_id": firmware, "device_ids": ["frame-1"] });
    let answer = admin.post("/api/v1/ota/devices/bulk/update", bulk).await;
    let answer = answer.expect(200);
    assert_eq!(code(&answer["results"][0]), "wrong_model");
    assert!(admin.updates_of("frame-1").await.is_empty());
}

async fn what_failed_in_a_campaign_that_ended_is_not_tried_again(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let entries: Vec<_> = (0..4).map(|n| device_json(&format!("frame-{n}"))).collect();
    let credentials = admin.register(&entries).await;
    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .start_campaign(json!({
            "name": "one of four", "firmware_id": firmware, "deployment_strategy": "immediate",
            "max_retries": 0, "failure_threshold_percent": 50, "auto_rollback": false,
        }))
        .await;
    assert_eq!(admin.campaign(&campaign).await["failure_rate_percent"], 0.0);
    let mut failed = String::new();
    for (n, credentials) in credentials.iter().enumerate() {
        let mut device = Device::connect(&service, MqttVersion::V311, credentials).await;
        device.check("2.0.0", "boot").await;
        let offer = device.offer(&trust).await;
        if n == 2 {
            failed = offer.text("update_id").to_owned();
            device.fail(&offer).await;
        } else {
            device.complete(&offer).await;
        }
    }
    let ended = admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
    assert_eq!(
        (&ended["failure_rate_percent"], &ended["failed_devices"]),
        (&json!(25.0), &json!(1)),
        "one of four"
    );
    let path = format!("/api/v1/ota/updates/{failed}/retry");
    let refused = admin.post(&path, json!({})).await.refused(409);
    assert_eq!(code(&refused), "campaign_ended");
    assert_eq!(admin.update(&failed).await["retry_count"], 0);
}

async fn nobody_goes_back_to_an_image_that_is_not_there(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let credentials = service.register(device_json("frame-1")).await;
    // It was registered with 2.0.0, of which there is no image.
    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .start_campaign(json!({
            "name": "one way", "firmware_id": firmware, "deployment_strategy": "immediate",
        }))
        .await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    let done = |c: &Value| c["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;
    device.check("2.1.0", "boot").await;

    let back = json!({ "to_version": "2.0.0" });
    let path = "/api/v1/ota/devices/frame-1/rollback";
    let refused = admin.post(path, back.clone()).await.refused(409);
    assert_eq!(code(&refused), "no_previous_firmware");

    admin.act(&campaign, "rollback").await.expect(200);
    let ended = admin
        .campaign_becomes(&campaign, "rolled back", |c| c["status"] == "rolled_back")
        .await;
    assert_eq!(ended["rollback"]["failed"], 1);
    let log = admin.rollbacks_of(&campaign).await;
    assert_eq!(log[0]["success"], false);
    let retry = format!(
        "/api/v1/ota/updates/{}/retry",
        log[0]["update_id"].as_str().unwrap()
    );
    let refused = admin.post(&retry, json!({})).await.refused(409);
    assert_eq!(code(&refused), "no_previous_firmware");

    // With the image there is a way back.
    admin.image("2.0.0").await;
    admin.post(path, back).await.expect(200);
    let offer = device.offer(&trust).await;
    assert_eq!(offer.text("action"), "rollback");
}

async fn an_image_out_of_use_is_refused_wherever_it_is_asked_for(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = trust(&admin).await;
    let credentials = service.register(device_json("frame-1")).await;
    let (firmware, other) = (admin.image("2.1.0").await, admin.image("2.2.0").await);
    let draft = |firmware: &str| json!({"name": "n", "firmware_id": firmware});
    let campaign = admin.create_campaign(draft(&other)).await;
    let one = json!({ "firmware_id": firmware, "max_retries": 0 });
    let path = "/api/v1/ota/devices/frame-1/update";
    admin.post(path, one).await.expect(201);
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.fail(&offer).await;
    let update = offer.text("update_id");
    admin.update_becomes(update, "failed").await;
    let gone = format!("/api/v1/ota/firmware/{firmware}");
    admin.delete(&gone).await.expect(200);

    let dry_run = "/api/v1/ota/campaigns/dry-run";
    let answer = admin.post(dry_run, draft(&firmware)).await.refused(409);
    assert_eq!(code(&answer), "firmware_deprecated");
    let path = format!("/api/v1/ota/campaigns/{campaign}");
    let answer = admin.put(&path, draft(&firmware)).await.refused(409);
    assert_eq!(code(&answer), "firmware_deprecated");
    assert_eq!(admin.campaign(&campaign).await["revision"], 0);
    let retry = format!("/api/v1/ota/updates/{update}/retry");
    let answer = admin.post(&retry, json!({})).await.refused(409);
    assert_eq!(code(&answer), "firmware_deprecated");

    let unknown = "0".repeat(32);
    let answer = admin.post(dry_run, draft(&unknown)).await.refused(404);
    assert_eq!(code(&answer), "not_found");
    let bulk = json!({ "firmware_id": unknown, "device_ids": ["frame-1"] });
    let path = "/api/v1/ota/devices/bulk/update";
    let answer = admin.post(path, bulk).await.refused(404);
    assert_eq!(code(&answer), "not_found");
}

async fn what_was_taken_back_is_not_begun_again(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let firmware = admin.image("2.1.0").await;
    let created = admin
        .create_campaign(json!({ "name": "n", "firmware_id": firmware }))
        .await;
    let refused = admin.act(&created, "rollback").await.refused(409);
    assert_eq!(code(&refused), "wrong_state", "it has not begun");

    let path = format!("/api/v1/firmware/{firmware}/deploy");
    let deploy = json!({ "ring": "canary" });
    let made = admin.post(&path, deploy.clone()).await.expect(201);
    let campaign = made["campaign_id"].as_str().unwrap();
    admin.act(campaign, "rollback").await.expect(200);
    let back = |c: &Value| c["status"] == "rolled_back";
    admin.campaign_becomes(campaign, "rolled back", back).await;
    let refused = admin.post(&path, deploy).await.refused(409);
    assert_eq!(code(&refused), "wrong_state");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("rolled_back"), "{detail}");
}
