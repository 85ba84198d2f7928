//! The Device Service: devices that it knows, and this service does not, are registered here when somebody names them; while it
//! is away, in whatever way, nobody waits for it who is known here.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Admin, Asked, Credentials, Device, MqttVersion, Neighbour, Options, Says, Service, Trust,
    device_json, eventually,
};

matrix!(a_device_that_is_known_elsewhere_is_registered_when_it_is_named: sqlite_gateway, postgres_gateway);
matrix!(a_campaign_means_devices_that_are_known_elsewhere: sqlite_gateway, postgres_gateway);
matrix!(a_device_service_that_is_away_holds_up_nobody_who_is_known: sqlite_gateway, postgres_gateway);
matrix!(a_device_service_that_stays_away_is_left_in_peace: sqlite_gateway);

/// What a neighbour answers to a question.
type Mind = fn(&Asked) -> Says;

const CAMPAIGNS: &str = "/api/v1/ota/campaigns";

/// What it knows of a device, in its own words.
fn record(id: &str) -> Value {
    json!({
        "device_id": id, "device_name": "Kitchen", "device_type": "frame", "model": "SF-100", "manufacturer": "Acme",
        "hardware_version": "A", "firmware_version": "2.0.0", "group_id": "kitchens", "tags": {"site": "berlin"},
        "status": "active",
    })
}

/// Knows each device whose id begins with `frame-`.
fn knows_frames(asked: &Asked) -> Says {
    let Some(id) = asked.path.strip_prefix("/api/v1/devices/") else {
        return Says::Json(200, json!({"status": "healthy"}));
    };
    match id {
        "frame-old" => {
            let mut record = record(id);
            record["status"] = "decommissioned".into();
            Says::Json(200, record)
        }
        "frame-odd" => Says::Json(200, json!({"device_id": id, "device_type": "frame"})),
        "frame-typed" => {
            let mut record = record(id);
            record["firmware_version"] = json!(2.1);
            Says::Json(200, record)
        }
        "frame-refused" => Says::Json(422, json!({"detail": "not an id"})),
        id if id.starts_with("frame-") => Says::Json(200, record(id)),
        _ => Says::Json(404, json!({"detail": "Device not found"})),
    }
}

async fn beside(devices: &Neighbour, options: Options) -> Service {
    Service::start(options.with("DEVICE_SERVICE_URL", devices.url())).await
}

/// Asks for an update of one device.
async fn update(admin: &Admin, device: &str, firmware: &str) -> crate::harness::Answer {
    let path = format!("/api/v1/ota/devices/{device}/update");
    admin.post(&path, json!({ "firmware_id": firmware })).await
}

/// What health says of it.
async fn told(admin: &Admin) -> (String, String) {
    let health = admin.health().await;
    let component = &health["components"]["device_service"];
    let text = |field: &str| component[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("detail"))
}

async fn a_device_that_is_known_elsewhere_is_registered_when_it_is_named(options: Options) {
    let devices = Neighbour::start(knows_frames).await;
    let service = beside(&devices, options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    admin.get("/api/v1/ota/devices/frame-7").await.refused(404);
    let made = update(&admin, "frame-7", &firmware).await.expect(201);
    assert_eq!(
        (&made["status"], &made["from_version"]),
        (&json!("scheduled"), &json!("2.0.0"))
    );
    let known = admin.get("/api/v1/ota/devices/frame-7").await.expect(200);
    let registered = [
        ("device_type", json!("frame")),
        ("device_model", json!("SF-100")),
        ("manufacturer", json!("Acme")),
        ("hw_revision", json!("A")),
        ("groups", json!(["kitchens"])),
        ("tags", json!({"site": "berlin"})),
    ];
    for (field, value) in registered {
        assert_eq!(known[field], value, "{field}");
    }
    let again = update(&admin, "frame-7", &firmware).await.refused(409);
    assert_eq!(again["code"], "already_requested");
    let asked = devices.asked();
    let paths: Vec<&str> = asked.iter().map(|asked| asked.path.as_str()).collect();
    assert_eq!(paths, ["/api/v1/devices/frame-7"], "once");
    assert_eq!(asked[0].method, "GET");
    assert_eq!(asked[0].headers["x-internal-call"], "true");
    let trail = "/api/v1/ota/audit?action=device.registered&entity_id=frame-7";
    let trail = admin.get(trail).await.expect(200);
    assert_eq!(trail["audit"][0]["subject"], "admin", "{trail}");

    // Nobody knows its secret before one is made.
    let path = "/api/v1/ota/devices/frame-7/credentials";
    let made = admin.post(path, json!({})).await;
    let made = made.expect(201);
    let text = |field: &str| made["mqtt"][field].as_str().unwrap().to_owned();
    let credentials = Credentials {
        username: text("username"),
        password: text("password"),
    };
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    device.leave().await;

    // Whom it does not know, or not any more.
    for nobody in ["nobody", "frame-old"] {
        let refused = update(&admin, nobody, &firmware).await.refused(404);
        assert_eq!(refused["code"], "not_found");
        let detail = refused["detail"].as_str().unwrap();
        assert!(
            detail.contains("neither this service nor the Device Service"),
            "{detail}"
        );
    }
    let refused = update(&admin, "frame-odd", &firmware).await.refused(409);
    assert_eq!(refused["code"], "device_unfit");
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("device_model must not be empty"),
        "{detail}"
    );
    let bulk = json!({ "firmware_id": firmware, "device_ids": ["frame-8", "nobody", "frame-9"] });
    let path = "/api/v1/ota/devices/bulk/update";
    let answer = admin.post(path, bulk).await.expect(201);
    let codes: Vec<&Value> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| &result["code"])
        .collect();
    assert_eq!(codes, [&json!(null), &json!("not_found"), &json!(null)]);

    let health = admin.health().await;
    assert_eq!(
        health["counters"]["device_service"],
        json!({"found": 3, "unknown": 3, "unfit": 1})
    );
    let (status, detail) = told(&admin).await;
    assert_eq!(status, "healthy", "{detail}");
    assert!(detail.starts_with("answers since 20"), "{detail}");
}

async fn a_campaign_means_devices_that_are_known_elsewhere(options: Options) {
    let devices = Neighbour::start(knows_frames).await;
    let service = beside(&devices, options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    admin.register(&[device_json("frame-0")]).await;
    let many: Vec<String> = (0..40).map(|n| format!("frame-{n}")).collect();
    let strangers = [
        "frame-old",
        "frame-odd",
        "frame-typed",
        "frame-refused",
        "nobody",
    ]
    .map(str::to_owned);
    let draft = |targets: &[String]| json!({ "name": "of many", "firmware_id": firmware, "target_devices": targets });
    let names = [&many[..], &strangers].concat();

    // A dry run makes nothing, and asks nobody.
    let dry = admin
        .post(&format!("{CAMPAIGNS}/dry-run"), draft(&names))
        .await;
    let left_out = &dry.expect(200)["left_out"]["by_reason"];
    assert_eq!(left_out, &json!({"unknown_device": 44}));
    assert!(devices.asked().is_empty());

    let made = admin.post(CAMPAIGNS, draft(&names)).await.expect(201);
    assert_eq!(
        (&made["target_device_count"], &made["left_out"]),
        (&json!(40), &json!({"unknown_device": 5}))
    );
    assert_eq!(devices.asked().len(), 44, "each that is not known here");
    let started = admin
        .act(made["campaign_id"].as_str().unwrap(), "start")
        .await;
    assert_eq!(started.expect(200)["total_devices"], 40);

    // One that names those alone who are here needs no word of anybody.
    devices.thinks(|_| Says::Json(500, Value::Null));
    let before = devices.asked().len();
    admin.post(CAMPAIGNS, draft(&many)).await.expect(201);
    assert_eq!(devices.asked().len(), before);
    let refused = admin.post(CAMPAIGNS, draft(&names)).await.refused(503);
    assert_eq!(refused["code"], "device_service_unavailable");
}

async fn a_device_service_that_is_away_holds_up_nobody_who_is_known(options: Options) {
    let mut devices = Neighbour::start(knows_frames).await;
    devices.stop().await;
    let service = beside(&devices, options).await;
    let admin = service.admin();
    // Before anybody has asked for a device.
    eventually("health tells that it is away", async || {
        let (status, detail) = told(&admin).await;
        (status == "unhealthy").then_some(()).ok_or(detail)
    })
    .await;
    admin
        .register(
            &[
                "here-0", "here-1", "here-2", "here-3", "here-4", "here-5", "here-6",
            ]
            .map(device_json),
        )
        .await;
    let firmware = admin.image("2.1.0").await;
    devices.start_again().await;
    eventually("health tells that it is back", async || {
        let (status, detail) = told(&admin).await;
        (status == "healthy").then_some(()).ok_or(detail)
    })
    .await;

    let ways: [(&str, Mind); 6] = [
        ("fails", |_| Says::Json(500, Value::Null)),
        // A try more finds no time.
        ("fails", |_| {
            Says::Late(Duration::from_millis(600), 500, Value::Null)
        }),
        ("answers oddly", |_| {
            Says::Text(200, "<html>welcome</html>".to_owned())
        }),
        ("answers oddly", |_| {
            Says::Json(200, json!({"data": "x".repeat(100_000)}))
        }),
        ("answers oddly", |_| Says::Json(401, Value::Null)),
        ("away", |_| Says::Nothing),
    ];
    for (number, (how, way)) in ways.into_iter().enumerate() {
        devices.thinks(way);
        is_away(&admin, number, &firmware, how).await;
    }
    devices.stop().await;
    is_away(&admin, ways.len(), &firmware, "away").await;

    // Slow, and once in a while out of breath, is not away.
    let mut times = 0_u32;
    devices.thinks(move |asked| {
        times += u32::from(asked.path != "/health");
        match (times, knows_frames(asked)) {
            (1, _) => Says::Json(502, Value::Null),
            (_, Says::Json(status, body)) => Says::Late(Duration::from_millis(200), status, body),
            (_, says) => says,
        }
    });
    devices.start_again().await;
    update(&admin, "frame-1", &firmware).await.expect(201);
    let (status, detail) = told(&admin).await;
    assert_eq!(status, "healthy", "{detail}");
}

/// A device that is known here is updated, one that may be known there has to wait, and health says why.
async fn is_away(admin: &Admin, number: usize, firmware: &str, how: &str) {
    let known = format!("here-{number}");
    update(admin, &known, firmware).await.expect(201);
    let stranger = format!("frame-{number}");
    let refused = update(admin, &stranger, firmware).await.refused(503);
    assert_eq!(refused["code"], "device_service_unavailable");
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains(&stranger) && detail.contains("try again later"),
        "{detail}"
    );
    let path = format!("/api/v1/ota/devices/{stranger}");
    admin.get(&path).await.refused(404);
    let (status, detail) = told(admin).await;
    assert_eq!(status, "unhealthy", "{number}: {detail}");
    assert!(
        detail.starts_with(&format!("{how} since 20")),
        "{number}: {detail}"
    );
    assert_eq!(admin.health().await["status"], "degraded");
    admin.get("/health/ready").await.expect(200);
}

async fn a_device_service_that_stays_away_is_left_in_peace(options: Options) {
    /// Questions, and how often each is asked by itself.
    const QUESTIONS: usize = 80;
    const TRIES: usize = 3;
    let devices = Neighbour::start(|_| Says::Json(500, Value::Null)).await;
    let service = beside(&devices, options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let of = |questions: usize| {
        let ids: Vec<String> = (0..questions).map(|n| format!("frame-{n}")).collect();
        json!({ "firmware_id": firmware, "device_ids": ids })
    };
    let path = "/api/v1/ota/devices/bulk/update";
    // Questions that it cannot bear keep nobody from asking others.
    admin.post(path, of(10)).await.expect(200);
    assert_eq!(devices.asked().len(), 10 * TRIES);

    devices.thinks(|_| Says::Json(503, Value::Null));
    let before = devices.asked().len();
    let bulk = of(QUESTIONS);
    let answer = admin.post(path, bulk.clone()).await.expect(200);
    let results = answer["results"].as_array().unwrap();
    assert!(
        results
            .iter()
            .all(|result| result["code"] == "device_service_unavailable"),
        "{answer}"
    );
    let asked = devices.asked().len() - before;
    assert!((TRIES..QUESTIONS * TRIES / 2).contains(&asked), "{asked}");

    // Whoever is asked too much is not asked again by those who wait.
    devices.thinks(knows_frames);
    eventually("it answers again", async || {
        let answer = update(&admin, "frame-first", &firmware).await;
        (answer.status == 201)
            .then_some(())
            .ok_or(answer.body.to_string())
    })
    .await;
    devices.thinks(|_| Says::Json(429, Value::Null));
    let before = devices.asked().len();
    update(&admin, "frame-next", &firmware).await.refused(503);
    assert_eq!(devices.asked().len(), before + 1);

    // It is found again by itself.
    devices.thinks(knows_frames);
    eventually("every question has its answer", async || {
        let answer = admin.post(path, bulk.clone()).await.body;
        let results = answer["results"].as_array().unwrap();
        let is_away = |result: &&Value| result["code"] == "device_service_unavailable";
        match results.iter().filter(is_away).count() {
            0 => Ok(()),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    let last = format!("/api/v1/ota/devices/frame-{}", QUESTIONS - 1);
    admin.get(&last).await.expect(200);
}
