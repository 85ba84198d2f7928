//! NATS beside the service: what happens arrives there once and in order, also after NATS was away, and devices that were
//! deleted elsewhere end here.

use serde_json::{Value, json};

use crate::harness::{
    Admin, Device, MqttVersion, NatsServer, Options, Service, Trust, device_json, eventually,
};

matrix!(events_arrive_on_their_subjects_once: sqlite_gateway);
matrix!(nats_that_is_away_delays_events_and_blocks_nothing: postgres_gateway);
matrix!(a_device_that_is_deleted_elsewhere_ends_here: sqlite_gateway, postgres_mosquitto);

const DELETED: &str = "device_service.device.deleted";
const SECRET: &str = "n0t-to-be-told";
/// What is told of a campaign of one device, in order.
const ROLLOUT: [&str; 5] = [
    "firmware.uploaded",
    "campaign.created",
    "campaign.started",
    "update.completed",
    "campaign.completed",
];

async fn server() -> (NatsServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (NatsServer::start(folder.path()).await, folder)
}

fn on(server: &NatsServer, options: Options) -> Options {
    options.with("NATS_URL", server.url())
}

/// The types of events, which are the subjects, and that their ids only rise.
fn in_order(events: &[(String, Value)]) -> Vec<&str> {
    let ids: Vec<i64> = events
        .iter()
        .map(|(_, e)| e["id"].as_i64().unwrap())
        .collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    for (subject, event) in events {
        assert_eq!(event["event_type"], subject.as_str());
        assert_eq!(event["source"], "ota_service");
    }
    events.iter().map(|(subject, _)| subject.as_str()).collect()
}

/// Waits until `/health/detailed` says so of NATS.
async fn is_told(admin: &Admin, status: &str) -> String {
    eventually("health tells how NATS is", async || {
        let answer = admin.try_get("/health/detailed").await;
        let health = answer.map_err(|error| error.to_string())?.body;
        let nats = &health["components"]["nats"];
        if nats["status"] == status {
            Ok(nats["detail"].as_str().unwrap().to_owned())
        } else {
            Err(health.to_string())
        }
    })
    .await
}

/// Waits until so many messages had this outcome.
async fn heard(admin: &Admin, outcome: &str, times: u64) {
    eventually("the service has heard of a deletion", async || {
        let counted = admin.health().await["counters"]["device_events"][outcome].clone();
        (counted == times).then_some(()).ok_or(counted.to_string())
    })
    .await;
}

async fn campaign(admin: &Admin, name: &str, firmware: &str) -> String {
    let spec = json!({ "name": name, "firmware_id": firmware, "deployment_strategy": "immediate" });
    admin.start_campaign(spec).await
}

async fn events_arrive_on_their_subjects_once(options: Options) {
    let (server, _folder) = server().await;
    let mut service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    let detail = is_told(&admin, "healthy").await;
    assert!(detail.starts_with("connected since 20"), "{detail}");
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let campaign = campaign(&admin, "told", &firmware).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;

    let events = server.events_up_to("campaign.completed").await;
    assert_eq!(in_order(&events), ROLLOUT);
    let data = &events[0].1["data"];
    let image = [
        "firmware_id",
        "name",
        "version",
        "device_model",
        "file_size",
    ];
    assert!(image.iter().all(|field| !data[field].is_null()), "{data:#}");
    assert_eq!(
        (&data["firmware_id"], &data["is_security_update"]),
        (&json!(firmware), &json!(false))
    );
    let data = &events[2].1["data"];
    assert_eq!(
        (
            &data["campaign_id"],
            &data["name"],
            &data["target_device_count"]
        ),
        (&json!(campaign), &json!("told"), &json!(1))
    );
    device.leave().await;

    // The service does not know any more what it has sent; NATS does.
    service.stop().await;
    let forget = "DELETE FROM outbox_places WHERE sink = 'nats'";
    service.tamper(forget).await.unwrap();
    service.start_again().await;
    let spare = admin.image("2.2.0").await;
    let path = format!("/api/v1/ota/firmware/{spare}");
    admin.delete(&path).await.expect(200);
    let events = server.events_up_to("firmware.deprecated").await;
    let wanted = [&ROLLOUT[..], &["firmware.uploaded", "firmware.deprecated"]].concat();
    assert_eq!(in_order(&events), wanted, "each once");
}

async fn nats_that_is_away_delays_events_and_blocks_nothing(options: Options) {
    let (mut server, _folder) = server().await;
    server.kill();
    let secured = server.url().replace("://", &format!("://ota:{SECRET}@"));
    let service = Service::start(options.with("NATS_URL", secured)).await;
    let admin = service.admin();
    let detail = is_told(&admin, "unhealthy").await;
    assert!(detail.starts_with("not connected since 20"), "{detail}");
    // Where it was looked for, and what to do; not the password.
    let url = server.url();
    let detail = eventually("health says where NATS was looked for", async || {
        let detail = is_told(&admin, "unhealthy").await;
        let told = detail.contains(&url) && detail.contains("look whether");
        if told { Ok(detail) } else { Err(detail) }
    })
    .await;
    assert!(!detail.contains(SECRET), "{detail}");
    assert_eq!(admin.health().await["status"], "degraded");
    admin.get("/health/ready").await.expect(200);
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    server.start_again().await;
    server.events_up_to("firmware.uploaded").await;
    is_told(&admin, "healthy").await;

    let campaign = campaign(&admin, "goes on", &firmware).await;
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    server.events_up_to("campaign.started").await;
    server.kill();
    device.complete(&offer).await;
    let done = |c: &Value| c["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;
    is_told(&admin, "unhealthy").await;
    server.start_again().await;
    let events = server.events_up_to("campaign.completed").await;
    assert_eq!(in_order(&events), ROLLOUT);
    device.leave().await;
}

fn deletion(device: &str) -> String {
    let event = json!({
        "event_type": "device.deleted", "source": "device_service", "data": { "device_id": device },
    });
    event.to_string()
}

async fn a_device_that_is_deleted_elsewhere_ends_here(options: Options) {
    let (server, _folder) = server().await;
    let mut service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    let names = ["at-work", "waits", "stays"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows("stays").await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let campaign = campaign(&admin, "of three", &firmware).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    device.check("2.0.0", "boot").await;
    device.offer(&trust).await;
    is_told(&admin, "healthy").await;

    // At work, and told while the service listens.
    server.publish(DELETED, deletion("at-work")).await;
    heard(&admin, "deleted", 1).await;
    admin.get("/api/v1/ota/devices/at-work").await.refused(404);
    let counts = |c: &Value| {
        ["pending", "in_progress", "cancelled"].map(|of| c[format!("{of}_devices")].as_u64())
    };
    let read = admin.campaign(&campaign).await;
    assert_eq!(counts(&read), [Some(2), Some(0), Some(1)], "{read:#}");
    server.publish(DELETED, "no JSON").await;
    server.publish(DELETED, r#"{"data": {}}"#).await;
    heard(&admin, "malformed", 2).await;
    // Told again, and of a stranger.
    server.publish(DELETED, deletion("at-work")).await;
    server.publish(DELETED, deletion("nobody")).await;
    heard(&admin, "unknown", 2).await;

    // Waiting, and told while the service is down, on a stream that the Device Service has made meanwhile.
    service.stop().await;
    let client = server.client().await;
    client.delete_stream("OTA_DEVICE_EVENTS").await.unwrap();
    let theirs = async_nats::jetstream::stream::Config {
        name: "DEVICES".to_owned(),
        subjects: vec!["device_service.>".to_owned()],
        ..Default::default()
    };
    client.create_stream(theirs).await.unwrap();
    // Events have a stream of somebody's, too, so that ours cannot be made: no reason not to listen.
    let ours = client.get_stream("OTA_EVENTS").await.unwrap();
    let house = async_nats::jetstream::stream::Config {
        name: "HOUSE".to_owned(),
        subjects: ours.cached_info().config.subjects.clone(),
        ..Default::default()
    };
    client.delete_stream("OTA_EVENTS").await.unwrap();
    client.create_stream(house).await.unwrap();
    server.publish(DELETED, deletion("waits")).await;
    server
        .publish("device_service.device.created", deletion("stays"))
        .await;
    service.start_again().await;
    heard(&admin, "deleted", 1).await;
    admin.get("/api/v1/ota/devices/waits").await.refused(404);
    admin.get("/api/v1/ota/devices/stays").await.expect(200);
    let read = admin.campaign(&campaign).await;
    assert_eq!(counts(&read), [Some(1), Some(0), Some(2)], "{read:#}");

    // Registered after it was told: another device of that name, which an old message does not mean.
    admin.register(&[device_json("waits")]).await;
    service.stop().await;
    let devices = client.get_stream("DEVICES").await.unwrap();
    devices.delete_consumer("ota_service").await.unwrap();
    // A consumer of somebody's hands out whatever there is.
    let all = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("ota_service".to_owned()),
        ..Default::default()
    };
    devices.create_consumer(all).await.unwrap();
    service.start_again().await;
    heard(&admin, "unknown", 1).await;
    heard(&admin, "other", 1).await;
    admin.get("/api/v1/ota/devices/stays").await.expect(200);
    admin.get("/api/v1/ota/devices/waits").await.expect(200);
    let mut consumer: async_nats::jetstream::consumer::PullConsumer =
        devices.get_consumer("ota_service").await.unwrap();
    eventually("nothing is left to acknowledge", async || {
        let info = consumer.info().await.unwrap();
        let left = (info.num_ack_pending, info.num_pending);
        (left == (0, 0)).then_some(()).ok_or(format!("{left:?}"))
    })
    .await;

    let trail = "/api/v1/ota/audit?subject=device_service";
    let trail = admin.get(trail).await.expect(200);
    let acts: Vec<_> = trail["audit"].as_array().unwrap().iter().rev().collect();
    let told = |field: &str| {
        acts.iter()
            .map(|act| act[field].as_str().unwrap())
            .collect::<Vec<_>>()
    };
    let deletion = ["update.cancelled", "device.deleted"];
    assert_eq!(told("action"), deletion.repeat(2));
    assert_eq!(told("authentication"), ["event"; 4]);
    let places = told("request_id");
    assert_eq!((places[1], places[3]), ("OTA_DEVICE_EVENTS:1", "DEVICES:1"));
}
