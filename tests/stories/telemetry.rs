//! What devices tell is kept, read back, seen at a glance; and devices are changed, found and deleted.

use serde_json::{Value, json};

use crate::harness::{
    Credentials, Device, Event, Link, MqttEnd, MqttVersion, Options, Service, device_json,
    eventually,
};

matrix!(heartbeats_are_read_back_newest_first: sqlite_gateway, postgres_mosquitto);
matrix!(the_fleet_is_seen_at_a_glance: sqlite_gateway, postgres_gateway);
matrix!(a_device_is_changed_and_found_by_what_it_is: sqlite_gateway, postgres_gateway);
matrix!(a_deleted_device_ends_what_it_had_open: sqlite_gateway, postgres_gateway);
matrix!(no_history_is_shown_when_none_is_kept: sqlite_gateway, postgres_gateway);
matrix!(days_to_come_have_their_partition_from_the_start: postgres_gateway);
matrix!(a_device_sends_its_heartbeat_over_http_and_nobody_else_does: sqlite_gateway, postgres_gateway);
matrix!(health_is_found_with_and_without_a_slash: sqlite_gateway);

const DEVICES: &str = "/api/v1/ota/devices";

async fn heartbeats_are_read_back_newest_first(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = admin
        .register(&[device_json("talks"), device_json("silent")])
        .await;
    service.knows("silent").await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    for n in 0..5 {
        let report =
            json!({"version": "2.0.0", "uptime_s": n, "metrics": {"fan": 0.5}, "of_my_own": [n]});
        device.report("heartbeat", &report).await;
    }
    let read = async |query: &str| {
        admin
            .get(&format!("/api/v1/heartbeat/talks{query}"))
            .await
            .expect(200)
    };
    let uptimes = |body: &Value| -> Vec<u64> {
        let rows = body["heartbeats"].as_array().unwrap();
        rows.iter()
            .map(|row| row["uptime_s"].as_u64().unwrap())
            .collect()
    };
    // Of the gateway's acknowledgement it follows that they are there; a broker's comes before.
    let all = match service.options().end {
        MqttEnd::Gateway => read("").await,
        MqttEnd::Mosquitto | MqttEnd::Nats => {
            eventually("all heartbeats are in the history", async || {
                let all = read("").await;
                let count = uptimes(&all).len();
                if count == 5 {
                    Ok(all)
                } else {
                    Err(format!("{count}"))
                }
            })
            .await
        }
    };
    assert_eq!(uptimes(&all), [4, 3, 2, 1, 0]);
    assert_eq!(
        all["heartbeats"][0]["of_my_own"],
        json!([4]),
        "it is kept as it was sent"
    );
    assert_eq!(uptimes(&read("?limit=2&offset=1").await), [3, 2]);
    let second = all["heartbeats"][3]["received_at"].as_str().unwrap();
    let fourth = all["heartbeats"][1]["received_at"].as_str().unwrap();
    let span = read(&format!("?from={second}&to={fourth}&limit=50")).await;
    assert_eq!(
        uptimes(&span),
        [2, 1],
        "from this time on, up to before that"
    );
    assert_eq!(read("?from=2100-01-01T00:00:00Z").await["count"], 0);
    let newest = read("?limit=1&to=2100-01-01T00:00:00Z").await;
    insta::allow_duplicates! { insta::assert_json_snapshot!(
        newest,
        { ".heartbeats[].received_at" => "[time]" },
        @r#"
    {
      "count": 1,
      "filters": {
        "to": "2100-01-01T00:00:00Z"
      },
      "heartbeats": [
        {
          "metrics": {
            "fan": 0.5
          },
          "of_my_own": [
            4
          ],
          "received_at": "[time]",
          "uptime_s": 4,
          "version": "2.0.0"
        }
      ],
      "limit": 1,
      "offset": 0
    }
    "#
    ) }

    let silent = admin.get("/api/v1/heartbeat/silent").await.expect(200);
    assert_eq!(silent["heartbeats"], json!([]));
    admin.get("/api/v1/heartbeat/nobody").await.refused(404);
    admin
        .get("/api/v1/heartbeat/talks?from=noon")
        .await
        .refused(400);
    admin
        .get("/api/v1/heartbeat/talks?limit=0")
        .await
        .refused(400);
    let stranger = admin.client().get(admin.url("/api/v1/heartbeat/talks"));
    assert_eq!(stranger.send().await.unwrap().status(), 401);
}

async fn the_fleet_is_seen_at_a_glance(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut entries: Vec<Value> = (0..5).map(|n| device_json(&format!("frame-{n}"))).collect();
    entries[0]["ring"] = "canary".into();
    entries[0]["groups"] = json!(["hall"]);
    entries[1]["groups"] = json!(["hall"]);
    entries[4]["device_model"] = "SF-200".into();
    let credentials = admin.register(&entries).await;
    let mut ill = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    let report = json!({
        "version": "2.1.0", "battery": {"percent": 12.5, "charging": true}, "metrics": {"fan": 0.5},
        "errors": [{"code": "sensor_lost", "message": "no answer", "at": "2026-01-02T03:04:05Z", "count": 3}],
    });
    ill.report("heartbeat", &report).await;
    let mut well = Device::connect(&service, MqttVersion::V5, &credentials[1]).await;
    well.report(
        "heartbeat",
        &json!({"version": "2.0.0", "battery": {"percent": 90}}),
    )
    .await;
    let status = async |query: &str| {
        admin
            .get(&format!("/api/v1/devices/status{query}"))
            .await
            .expect(200)
    };
    let everybody = status("").await;
    insta::allow_duplicates! { insta::assert_json_snapshot!(everybody, @r#"
    {
      "by_model": {
        "SF-100": 4,
        "SF-200": 1
      },
      "by_ring": {
        "canary": 1,
        "unpinned": 4
      },
      "by_version": {
        "2.0.0": 4,
        "2.1.0": 1
      },
      "filters": {},
      "low_battery": 1,
      "low_battery_percent": 20,
      "never_seen": 3,
      "offline": 3,
      "online": 2,
      "total_devices": 5,
      "with_errors": 1
    }
    "#) }
    let hall = status("?group=hall&device_model=SF-100").await;
    assert_eq!(
        (&hall["total_devices"], &hall["offline"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(
        status("?ring=canary").await["by_version"],
        json!({"2.1.0": 1})
    );
    assert_eq!(status("?low_battery_percent=95").await["low_battery"], 2);
    assert_eq!(status("?device_model=nothing").await["by_model"], json!({}));
    for wrong in ["?ring=red", "?low_battery_percent=101", "?colour=red"] {
        admin
            .get(&format!("/api/v1/devices/status{wrong}"))
            .await
            .refused(400);
    }
    let seen = admin.get(&format!("{DEVICES}/frame-0")).await.expect(200);
    assert_eq!(
        (&seen["charging"], &seen["error_count"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(seen["last_error"]["code"], "sensor_lost");
    assert_eq!(seen["metrics"], json!({"fan": 0.5}));
}

async fn a_device_is_changed_and_found_by_what_it_is(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let entries: Vec<Value> = (0..4).map(|n| device_json(&format!("frame-{n}"))).collect();
    let credentials = admin.register(&entries).await;
    let _here = Device::connect(&service, MqttVersion::V311, &credentials[2]).await;
    let change =
        json!({"groups": ["hall"], "tags": {"floor": "2"}, "ring": "early", "hw_revision": null});
    let changed = admin
        .put(&format!("{DEVICES}/frame-1"), change)
        .await
        .expect(200);
    insta::allow_duplicates! { insta::assert_json_snapshot!(changed, { ".registered_at" => "[time]" }, @r#"
    {
      "battery_percent": null,
      "bucket": 6431,
      "charging": null,
      "confirmed": null,
      "device_id": "frame-1",
      "device_model": "SF-100",
      "device_type": "frame",
      "error_count": 0,
      "firmware_version": "2.0.0",
      "free_storage_bytes": null,
      "groups": [
        "hall"
      ],
      "hw_revision": null,
      "last_error": null,
      "last_seen": null,
      "manufacturer": "Acme",
      "metrics": {},
      "online": false,
      "registered_at": "[time]",
      "reported_model": null,
      "revision": 1,
      "ring": "early",
      "security_floor": null,
      "slot": null,
      "tags": {
        "floor": "2"
      }
    }
    "#) }
    let found = async |query: &str| -> Vec<String> {
        let list = admin.get(&format!("{DEVICES}?{query}")).await.expect(200);
        let devices = list["devices"].as_array().unwrap();
        devices
            .iter()
            .map(|device| device["device_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(found("group=hall").await, ["frame-1"]);
    assert_eq!(found("ring=early&device_model=SF-100").await, ["frame-1"]);
    // Who has come is written down a moment later.
    eventually("one is there", async || {
        let there = found("online=true").await;
        (there == ["frame-2"])
            .then_some(())
            .ok_or(format!("{there:?}"))
    })
    .await;
    assert_eq!(found("online=false&limit=2").await, ["frame-0", "frame-1"]);
    assert!(found("device_model=SF-200").await.is_empty());
    admin
        .get(&format!("{DEVICES}?online=maybe"))
        .await
        .refused(400);

    let path = format!("{DEVICES}/frame-1");
    admin
        .put(&path, json!({"device_id": "frame-1", "groups": null}))
        .await
        .expect(200);
    assert!(found("group=hall").await.is_empty());
    for wrong in [
        json!({"device_id": "frame-2"}),
        json!({"ring": "red"}),
        json!({"device_model": ""}),
        json!({"device_model": null}),
        json!({"colour": "red"}),
    ] {
        admin.put(&path, wrong).await.refused(400);
    }
    admin
        .put(&format!("{DEVICES}/nobody"), json!({}))
        .await
        .refused(404);
}

async fn a_deleted_device_ends_what_it_had_open(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let credentials = admin
        .register(&[device_json("gone"), device_json("stays")])
        .await;
    let mut gone = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    gone.report("heartbeat", &json!({"version": "2.0.0"})).await;
    let campaign = admin
        .start_campaign(json!({
            "name": "one of two", "firmware_id": firmware, "deployment_strategy": "immediate",
        }))
        .await;
    admin
        .campaign_becomes(&campaign, "offered to one", |c| {
            c["in_progress_devices"] == 1
        })
        .await;

    let path = format!("{DEVICES}/gone");
    let deleted = admin.delete(&path).await.expect(200);
    assert_eq!(
        deleted,
        json!({"device_id": "gone", "status": "deleted", "cancelled_updates": 1})
    );
    while !matches!(gone.link().event().await, Event::Closed(_)) {}
    let seen = admin.campaign(&campaign).await;
    let counts =
        ["pending", "in_progress", "cancelled"].map(|name| &seen[format!("{name}_devices")]);
    assert_eq!(counts, [&json!(1), &json!(0), &json!(1)]);
    let secret = &credentials[0].password;
    let mut again = Link::open(MqttVersion::V311, &service.mqtt(), "gone", "gone", secret);
    assert!(
        matches!(again.event().await, Event::Closed(_)),
        "its secret has ended"
    );
    admin.get(&path).await.refused(404);
    admin.delete(&path).await.refused(404);
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/gone/why");
    let why = admin.get(&why).await.expect(200);
    assert!(why.to_string().contains("unknown_device"), "{why:#}");
    admin.get("/api/v1/heartbeat/gone").await.refused(404);
    let update = json!({"firmware_id": firmware});
    admin
        .post(&format!("{path}/update"), update)
        .await
        .refused(404);
    let status = admin.get("/api/v1/devices/status").await.expect(200);
    assert_eq!(status["total_devices"], 1);
    let listed = admin
        .get(&format!("/api/v1/ota/campaigns/{campaign}/devices"))
        .await
        .expect(200);
    assert_eq!(listed["count"], 2, "its record stays");

    // Who comes back is a new device.
    let back = admin.register(&[device_json("gone")]).await;
    assert_ne!(&back[0].password, secret);
    Device::connect(&service, MqttVersion::V311, &back[0]).await;
}

async fn no_history_is_shown_when_none_is_kept(options: Options) {
    let options = options.with("HEARTBEAT_RETENTION_DAYS", "0");
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = admin.register(&[device_json("talks")]).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    device
        .report("heartbeat", &json!({"version": "2.0.7"}))
        .await;
    let history = admin.get("/api/v1/heartbeat/talks").await.expect(200);
    assert_eq!(history["count"], 0);
    let seen = admin.get(&format!("{DEVICES}/talks")).await.expect(200);
    assert_eq!(seen["firmware_version"], "2.0.7", "its last word is kept");
}

async fn days_to_come_have_their_partition_from_the_start(options: Options) {
    let service = Service::start(options).await;
    // Of the day that comes first behind what the migration holds.
    let look = "DO $$ BEGIN ASSERT to_regclass(to_char(NOW() AT TIME ZONE 'UTC' + INTERVAL '2 days', \
         '\"device_heartbeats_\"YYYYMMDD')) IS NOT NULL; END $$";
    eventually("the partition is there", async || {
        service.tamper(look).await
    })
    .await;
}

async fn health_is_found_with_and_without_a_slash(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    for path in [
        "/health",
        "/health/",
        "/health/live",
        "/health/ready",
        "/health/ready/",
    ] {
        let health = admin.get(path).await.expect(200);
        assert_eq!(health["service"], "ota_service", "{path}");
    }
    let parts = admin.health().await["components"].clone();
    for part in ["database", "storage"] {
        assert_eq!(parts[part]["status"], "healthy", "{parts}");
    }
    eventually("the gateway is healthy", async || {
        let health = admin.health().await;
        if health["status"] == "healthy" {
            Ok(())
        } else {
            Err(health.to_string())
        }
    })
    .await;
}

async fn a_device_sends_its_heartbeat_over_http_and_nobody_else_does(options: Options) {
    let options = options.with("RATE_LIMIT_HEARTBEAT", "3/hour");
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = admin
        .register(&[device_json("talks"), device_json("other")])
        .await;
    let path = admin.url("/api/v1/heartbeat");
    let send = async |who: &Credentials, body: Value| {
        let request = admin.client().post(&path).json(&body);
        let request = request.basic_auth(&who.username, Some(&who.password));
        let response = request.send().await.unwrap();
        let retry_after = response.headers().contains_key("retry-after");
        (response.status().as_u16(), retry_after)
    };
    let beat = json!({"device_id": "talks", "version": "2.0.0", "uptime_s": 9});
    assert_eq!(send(&credentials[0], beat.clone()).await, (200, false));
    let history = admin.get("/api/v1/heartbeat/talks").await.expect(200);
    assert_eq!(
        history["heartbeats"][0]["uptime_s"], 9,
        "what was answered is there"
    );
    let seen = admin.get(&format!("{DEVICES}/talks")).await.expect(200);
    assert!(seen["last_seen"].is_string());

    assert_eq!(
        send(&credentials[1], beat.clone()).await.0,
        403,
        "nobody speaks for another"
    );
    admin
        .post("/api/v1/heartbeat", beat.clone())
        .await
        .refused(403);
    let stranger = admin.client().post(&path).json(&beat).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    let wrong = json!({"device_id": "talks", "version": "2.0.0", "cpu_percent": 101});
    assert_eq!(send(&credentials[0], wrong).await.0, 400);
    assert_eq!(send(&credentials[0], beat.clone()).await.0, 200);
    assert_eq!(send(&credentials[0], beat).await, (429, true));
    assert_eq!(
        admin.get("/api/v1/heartbeat/talks").await.expect(200)["count"],
        2
    );
}
