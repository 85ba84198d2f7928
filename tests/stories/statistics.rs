//! What all updates come to: kept with them, and right at every moment.

use serde_json::{Value, json};

use crate::harness::{Admin, Device, MqttVersion, Offer, Options, Service, Trust, device_json};

matrix!(the_figures_follow_every_update_from_its_offer_to_its_rollback: sqlite_gateway, postgres_gateway);
matrix!(figures_of_what_is_not_there_are_refused: sqlite_gateway);

const STATS: &str = "/api/v1/ota/stats";

/// Reports an attempt up to its download, and how it ends.
async fn ends(device: &mut Device, offer: &Offer, bytes: u64, phase: &str, end: Value) {
    let downloading = json!({ "bytes_done": bytes, "bytes_total": bytes, "percent": 50.0 });
    for (seq, phase, more) in [
        (1, "accepted", json!({})),
        (2, "downloading", downloading),
        (3, phase, end),
    ] {
        let report = offer.progress(seq, phase, &more);
        device.report("progress", &report).await;
    }
}

async fn the_figures_follow_every_update_from_its_offer_to_its_rollback(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    nothing_is_counted_yet(&admin).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut hub = device_json("hub-1");
    hub["device_type"] = json!("hub");
    let devices = [device_json("frame-1"), hub, device_json("frame-2")];
    let credentials = admin.register(&devices).await;
    let old = admin.image("2.0.0").await;
    let new = admin.image("2.1.0").await;
    let spec = json!({
        "name": "counted", "firmware_id": new, "deployment_strategy": "immediate", "max_retries": 0,
        "failure_threshold_percent": 100,
    });
    let campaign = admin.start_campaign(spec).await;
    let mut connected = Vec::new();
    for credentials in &credentials[..2] {
        let mut device = Device::connect(&service, MqttVersion::V311, credentials).await;
        device.check("2.0.0", "boot").await;
        connected.push(device);
    }
    let [frame, hub] = connected.as_mut_slice() else {
        panic!("two devices are connected")
    };
    let offer = frame.offer(&trust).await;
    let done = json!({ "version": "2.1.0" });
    ends(frame, &offer, 200_000, "completed", done).await;
    let offer = hub.offer(&trust).await;
    // It claims more bytes than the image has.
    let error = json!({ "error": { "code": "install_failed", "message": "" } });
    ends(hub, &offer, 999_999_999, "failed", error).await;

    updates_have_ended(&admin, &campaign).await;
    for (image, rate) in [(&old, 0.0), (&new, 50.0)] {
        let path = format!("/api/v1/ota/firmware/{image}");
        assert_eq!(admin.get(&path).await.expect(200)["success_rate"], rate);
    }
    assert_eq!(
        admin.campaign(&campaign).await["firmware"]["success_rate"],
        50.0
    );

    // Of one device: the one that failed is in its history, and in its rate.
    for (device, status, rate) in [("frame-1", "completed", 100.0), ("hub-1", "failed", 0.0)] {
        let path = format!("/api/v1/ota/devices/{device}/updates");
        let history = admin.get(&path).await.expect(200);
        assert_eq!(history["updates"][0]["status"], status);
        assert!(history["updates"][0]["duration_seconds"].is_f64());
        assert_eq!(history["success_rate"], rate, "{history:#}");
    }

    admin.act(&campaign, "cancel").await.expect(200);
    admin.act(&campaign, "rollback").await.expect(200);
    frame.check("2.1.0", "poll").await;
    let offer = frame.offer(&trust).await;
    ends(frame, &offer, 0, "completed", json!({ "version": "2.0.0" })).await;
    let gone = |c: &Value| c["status"] == "rolled_back";
    admin.campaign_becomes(&campaign, "rolled back", gone).await;
    what_was_taken_back_is_told_apart(&admin).await;
}

async fn nothing_is_counted_yet(admin: &Admin) {
    let stats = admin.get(STATS).await.expect(200);
    insta::allow_duplicates! {
        insta::assert_json_snapshot!(stats, { ".last_24h_since" => "[time]" }, @r#"
        {
          "active_campaigns": 0,
          "avg_update_time": 0.0,
          "campaigns_by_status": {
            "cancelled": 0,
            "completed": 0,
            "created": 0,
            "in_progress": 0,
            "paused": 0,
            "rolled_back": 0,
            "rolling_back": 0
          },
          "cancelled_updates": 0,
          "completed_campaigns": 0,
          "completed_updates": 0,
          "failed_campaigns": 0,
          "failed_updates": 0,
          "failure_reasons": {},
          "in_progress_updates": 0,
          "last_24h_data_transferred": 0,
          "last_24h_failures": 0,
          "last_24h_since": "[time]",
          "last_24h_updates": 0,
          "pending_updates": 0,
          "regressed_updates": 0,
          "rollbacks": {
            "cancelled": 0,
            "completed": 0,
            "failed": 0,
            "in_progress": 0,
            "pending": 0,
            "total": 0
          },
          "staged_updates": 0,
          "success_rate": 0.0,
          "total_campaigns": 0,
          "total_data_transferred": 0,
          "total_updates": 0,
          "updates_by_device_type": {},
          "updates_by_firmware_version": {}
        }
        "#);
    }
}

/// One completed, one failed, one waits.
async fn updates_have_ended(admin: &Admin, campaign: &str) {
    let ended = |c: &Value| c["completed_devices"] == 1 && c["failed_devices"] == 1;
    admin
        .campaign_becomes(campaign, "through two devices", ended)
        .await;
    let path = format!("{STATS}/campaigns/{campaign}");
    let stats = admin.get(&path).await.expect(200);
    insta::allow_duplicates! {
        insta::assert_json_snapshot!(stats, { ".campaign_id" => "[id]", ".avg_update_time" => "[minutes]" }, @r#"
        {
          "avg_update_time": "[minutes]",
          "campaign_id": "[id]",
          "cancelled_updates": 0,
          "completed_updates": 1,
          "failed_updates": 1,
          "failure_reasons": {
            "install_failed": 1
          },
          "in_progress_updates": 0,
          "name": "counted",
          "pending_updates": 1,
          "regressed_updates": 0,
          "rollbacks": {
            "cancelled": 0,
            "completed": 0,
            "failed": 0,
            "in_progress": 0,
            "pending": 0,
            "total": 0
          },
          "staged_updates": 0,
          "status": "in_progress",
          "success_rate": 50.0,
          "total_data_transferred": 400000,
          "total_updates": 3,
          "updates_by_device_type": {
            "frame": 2,
            "hub": 1
          },
          "updates_by_firmware_version": {
            "2.1.0": 3
          }
        }
        "#);
    }
    let minutes = stats["avg_update_time"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&minutes), "{minutes}");
    let all = admin.get(STATS).await.expect(200);
    for (field, value) in [
        ("total_campaigns", 1),
        ("active_campaigns", 1),
        ("last_24h_updates", 2),
        ("last_24h_failures", 1),
        ("last_24h_data_transferred", 400_000),
    ] {
        assert_eq!(all[field], value, "{field} in {all:#}");
    }
    for field in ["total_updates", "failure_reasons", "success_rate"] {
        assert_eq!(all[field], stats[field]);
    }
}

async fn what_was_taken_back_is_told_apart(admin: &Admin) {
    let stats = admin.get(STATS).await.expect(200);
    for (field, value) in [
        ("active_campaigns", 0),
        ("failed_campaigns", 1),
        ("total_updates", 3),
        ("completed_updates", 1),
        ("failed_updates", 1),
        ("cancelled_updates", 1),
        ("last_24h_updates", 2),
        ("total_data_transferred", 400_000),
    ] {
        assert_eq!(stats[field], value, "{field} in {stats:#}");
    }
    assert_eq!(
        (
            &stats["rollbacks"]["total"],
            &stats["rollbacks"]["completed"]
        ),
        (&json!(1), &json!(1))
    );
    assert_eq!(stats["campaigns_by_status"]["rolled_back"], 1);
}

async fn figures_of_what_is_not_there_are_refused(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    for (path, status, code) in [
        ("/campaigns/camp_0000000000000000", 404, "not_found"),
        ("/campaigns/nonsense", 404, "not_found"),
        ("?limit=5", 400, "invalid_query"),
    ] {
        let answer = admin.get(&format!("{STATS}{path}")).await;
        assert_eq!(answer.refused(status)["code"], code, "{path}");
    }
}
