//! Below a device's security floor with a permit, signed by the installation's own release key, and no other way.

use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{
    Device, MqttVersion, Options, Service, Trust, device_json, eventually, image, image_metadata,
};

matrix!(a_device_goes_back_below_its_floor_with_a_permit_and_no_other_way: sqlite_gateway, postgres_gateway);

const PERMITS: &str = "/api/v1/ota/permits";
const ROLLBACK: &str = "/api/v1/ota/devices/frame-1/rollback";

fn sha256(version: &str) -> String {
    hex::encode(Sha256::digest(image(version)))
}

/// What the command prints.
fn signed(service: &Service, from: &str, to: &str) -> Value {
    let mut command: Command = service.command(&service.data_dir());
    let (from, to) = (sha256(from), sha256(to));
    let output = command
        .args(["permit", "--device", "frame-1", "--from-sha256", &from])
        .args(["--to-sha256", &to, "--hours", "1"])
        .output()
        .unwrap();
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{complained}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn a_device_goes_back_below_its_floor_with_a_permit_and_no_other_way(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    for (version, security_version) in [("2.0.0", 1), ("2.1.0", 2)] {
        let mut metadata = image_metadata(version);
        metadata["security_version"] = json!(security_version);
        let uploaded = admin.upload(&metadata, "image.bin", image(version)).await;
        uploaded.expect(201);
    }
    let credentials = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.1.0", "boot").await;
    let heartbeat = json!({ "version": "2.1.0", "security_floor": 2 });
    device.report("heartbeat", &heartbeat).await;

    let request = json!({ "to_version": "2.0.0", "reason": "it flickers" });
    eventually("the service has heard of the floor", async || {
        let answer = admin.post(ROLLBACK, request.clone()).await;
        match &answer.body["code"] {
            code if code == "below_floor" => Ok(()),
            _ => Err(format!("{:#}", answer.body)),
        }
    })
    .await;
    let refused = admin.post(ROLLBACK, request.clone()).await.refused(409);
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("POST /api/v1/ota/permits"), "{detail}");

    let permit = signed(&service, "2.1.0", "2.0.0");
    let mut forged = signed(&service, "2.1.0", "2.0.0");
    forged["signatures"] = permit["signatures"].clone();
    let refused = admin.post(PERMITS, forged).await.refused(422);
    assert_eq!(refused["code"], "permit_refused");
    let taken = admin.post(PERMITS, permit.clone()).await.expect(201);
    let payload = trust.open(&permit, "rollback-permit", "release");
    assert_eq!(taken["permit_id"], payload["permit_id"]);
    assert_eq!(
        (&taken["device_id"], &taken["to_sha256"]),
        (&json!("frame-1"), &json!(sha256("2.0.0")))
    );
    let again = admin.post(PERMITS, permit.clone()).await.refused(409);
    assert_eq!(again["code"], "permit_exists");
    let list = admin.get(PERMITS).await.expect(200);
    assert_eq!(list["permits"], json!([taken]));
    let told = admin.get("/api/v1/ota/audit?action=permit.added").await;
    let told = told.expect(200);
    assert_eq!(told["count"], 1, "{told:#}");
    assert_eq!(told["audit"][0]["entity_id"], taken["permit_id"]);

    let made = admin.post(ROLLBACK, request).await.expect(200);
    let offer = device.offer(&trust).await;
    assert_eq!(offer.text("action"), "rollback");
    assert_eq!(offer.permit, Some(payload));
    device.complete(&offer).await;
    let update = made["update_id"].as_str().unwrap();
    admin.update_becomes(update, "completed").await;
}
