//! Devices are made known: one, a thousand, some of them wrong; and their secrets.

use serde_json::{Value, json};

use crate::harness::{
    Device, Event, Link, MqttEnd, MqttVersion, Options, Service, Trust, device_json, eventually,
};

matrix!(a_single_device_is_taken_without_a_list: sqlite_gateway);
matrix!(a_thousand_are_taken_and_one_more_refused: sqlite_gateway, postgres_gateway);
matrix!(each_wrong_entry_is_told_and_harms_no_other: sqlite_gateway, postgres_gateway);
matrix!(no_name_stands_twice_in_what_is_registered: sqlite_gateway);
matrix!(new_credentials_end_the_old_session);
matrix!(no_device_is_taken_for_the_service: sqlite_gateway, sqlite_mosquitto, postgres_mosquitto);
matrix!(a_device_that_was_deleted_comes_back_as_a_new_one);

const DEVICES: &str = "/api/v1/ota/devices";

async fn a_single_device_is_taken_without_a_list(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let first = admin
        .post(DEVICES, device_json("frame:1.a_B-c"))
        .await
        .expect(201);
    insta::allow_duplicates! { insta::assert_json_snapshot!(first, { ".devices[].mqtt.password" => "[secret]" }, @r#"
    {
      "count": 1,
      "devices": [
        {
          "device_id": "frame:1.a_B-c",
          "mqtt": {
            "password": "[secret]",
            "username": "frame:1.a_B-c"
          },
          "status": "created"
        }
      ]
    }
    "#) }
    let again = admin
        .post(DEVICES, device_json("frame:1.a_B-c"))
        .await
        .expect(201);
    let entry = &again["devices"][0];
    assert_eq!(entry["status"], "exists");
    assert!(entry["mqtt"].is_null(), "a secret is shown once: {entry}");
    let shown = admin
        .get(&format!("{DEVICES}/frame:1.a_B-c"))
        .await
        .expect(200)
        .to_string();
    let secret = first["devices"][0]["mqtt"]["password"].as_str().unwrap();
    assert!(!shown.contains(secret));
}

async fn a_thousand_are_taken_and_one_more_refused(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let devices = |count: usize| -> Vec<Value> {
        (0..count).map(|n| device_json(&format!("d-{n}"))).collect()
    };
    admin
        .post(DEVICES, json!({ "devices": devices(1_001) }))
        .await
        .refused(400);
    let bare = admin.post(DEVICES, json!(devices(2))).await.refused(400);
    assert!(bare.to_string().contains("give it its name"), "{bare}");
    let nobody = admin.get(&format!("{DEVICES}/d-0")).await;
    nobody.refused(404);
    let body = admin
        .post(DEVICES, json!({ "devices": devices(1_000) }))
        .await
        .expect(201);
    assert_eq!(body["count"], 1_000);
    let entries = body["devices"].as_array().unwrap();
    assert!(entries.iter().all(|entry| entry["status"] == "created"));
    let mut secrets: Vec<_> = entries
        .iter()
        .map(|entry| entry["mqtt"]["password"].as_str().unwrap())
        .collect();
    secrets.sort_unstable();
    secrets.dedup();
    assert_eq!(secrets.len(), 1_000, "every secret is another");
    assert!(secrets.iter().all(|secret| secret.len() >= 20));
}

async fn each_wrong_entry_is_told_and_harms_no_other(options: Options) {
    let service = Service::start(options).await;
    let long = "x".repeat(65);
    let bad = [
        "", "a/b", "a+b", "#", "$SYS", "-a", "a b", "é", "a\u{0}b", "a\nb", &long,
    ];
    let mut devices = vec![device_json("good-1"), device_json("good-1")];
    devices.extend(bad.iter().map(|id| device_json(id)));
    devices.push(json!({ "device_model": "SF-100" }));
    devices.push(device_json(&"y".repeat(64)));
    let body = service
        .admin()
        .post(DEVICES, json!({ "devices": devices }))
        .await
        .expect(201);
    let entries = body["devices"].as_array().unwrap();
    let statuses: Vec<_> = entries
        .iter()
        .map(|entry| entry["status"].as_str().unwrap())
        .collect();
    let mut expected = vec!["created", "exists"];
    expected.extend(vec!["error"; bad.len() + 1]);
    expected.push("created");
    assert_eq!(statuses, expected, "{body:#}");
    for entry in entries.iter().filter(|entry| entry["status"] == "error") {
        assert!(
            entry["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{entry}"
        );
        assert!(entry["mqtt"].is_null(), "{entry}");
    }
}

async fn no_name_stands_twice_in_what_is_registered(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let post = async |path: &str, body: &str| {
        let request = admin.client().post(admin.url(path)).body(body.to_owned());
        let answer = admin
            .send(request.header("Content-Type", "application/json"))
            .await;
        answer.refused(400)["detail"].as_str().unwrap().to_owned()
    };
    let twice = "stands twice in one object at line 1 column";
    let device = r#""device_id":"d1","device_model":"SF-100","tags":{"floor":"1","floor":"2"}"#;
    let told = post(DEVICES, &format!("{{{device}}}")).await;
    assert!(
        told.starts_with(&format!("the body: tags: the name \"floor\" {twice}")),
        "{told}"
    );
    let told = post(DEVICES, &format!(r#"{{"devices":[{{{device}}}]}}"#)).await;
    assert!(
        told.starts_with(&format!(
            "the body: devices[0].tags: the name \"floor\" {twice}"
        )),
        "{told}"
    );
    let model = r#"{"device_id":"d1","device_model":"SF-100","device_model":"SF-200"}"#;
    let told = post(DEVICES, model).await;
    assert!(
        told.starts_with(&format!(
            "the body is not as it should be: the name \"device_model\" {twice}"
        )),
        "{told}"
    );
    let firmware = admin.image("2.1.0").await;
    let filter = format!(
        r#"{{"name":"n","firmware_id":"{firmware}","target_filters":{{"field":"ring","op":"eq","value":"canary","op":"ne"}}}}"#
    );
    let told = post("/api/v1/ota/campaigns", &filter).await;
    assert!(
        told.starts_with(&format!(
            "the body: target_filters: the name \"op\" {twice}"
        )),
        "{told}"
    );
    let list = admin.get(DEVICES).await.expect(200);
    assert_eq!(list["count"], 0);
}

async fn new_credentials_end_the_old_session(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let old = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &old).await;
    let path = format!("{DEVICES}/frame-1/credentials");
    let body = admin.post(&path, json!({})).await;
    assert!([200, 201].contains(&body.status), "{body:?}");
    let new = body.body["mqtt"]["password"]
        .as_str()
        .unwrap_or_else(|| panic!("{:#}", body.body))
        .to_owned();
    assert_ne!(new, old.password);

    loop {
        match device.link().event().await {
            Event::Closed(_) => break,
            Event::Acknowledged(_) | Event::Message { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let address = service.mqtt();
    eventually("the old secret is refused", async || {
        let mut link = Link::open(
            MqttVersion::V311,
            &address,
            "frame-1",
            "frame-1",
            &old.password,
        );
        match link.event().await {
            Event::Closed(why) => Ok(why),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let renewed = crate::harness::Credentials {
        password: new,
        ..old
    };
    Device::connect(&service, MqttVersion::V311, &renewed)
        .await
        .leave()
        .await;
    if service.options().end == MqttEnd::Gateway {
        admin
            .post(&format!("{DEVICES}/nobody/credentials"), json!({}))
            .await
            .refused(404);
    }
}

async fn no_device_is_taken_for_the_service(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    for id in [
        "device-ota",
        "device-ota-",
        "device-ota-0123456789abcdef-up",
    ] {
        let body = admin.post(DEVICES, device_json(id)).await.refused(400);
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains("MQTT broker"), "{detail}");
        let listed = json!({ "devices": [device_json(id)] });
        let body = admin.post(DEVICES, listed).await.expect(201);
        assert_eq!(body["devices"][0]["status"], "error", "{body}");
    }
    let near = admin.post(DEVICES, device_json("device-otaku")).await;
    assert_eq!(near.expect(201)["devices"][0]["status"], "created");
    if service.options().end == MqttEnd::Gateway {
        return;
    }

    // One that was registered before this was refused, or before the broker's user was called so.
    let old = service.register(device_json("frame-old")).await;
    service
        .tamper("UPDATE devices SET device_id = 'device-ota' WHERE device_id = 'frame-old'")
        .await
        .unwrap();
    let frame = service.register(device_json("frame-1")).await;
    let file = service.scratch().join("mosquitto/passwords");
    let text = std::fs::read_to_string(file).unwrap();
    let own = text.lines().filter(|line| line.starts_with("device-ota:"));
    assert_eq!(own.count(), 1, "{text}");
    let mut link = Link::open(
        MqttVersion::V311,
        &service.mqtt(),
        "device-ota",
        "device-ota",
        &old.password,
    );
    let event = link.event().await;
    assert!(matches!(event, Event::Closed(_)), "{event:?}");
    // The service has its own place still.
    let mut device = Device::connect(&service, MqttVersion::V311, &frame).await;
    assert_eq!(device.check("2.0.0", "boot").await["offer"], false);
}

async fn a_device_that_was_deleted_comes_back_as_a_new_one(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let before = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &before).await;
    device.check("2.0.0", "boot").await;
    admin
        .delete(&format!("{DEVICES}/frame-1"))
        .await
        .expect(200);
    drop(device);

    let after = service.register(device_json("frame-1")).await;
    assert_ne!(after.password, before.password);
    let firmware = admin.image("2.1.0").await;
    let spec = json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" });
    admin.start_campaign(spec).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &after).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    admin
        .update_becomes(offer.text("update_id"), "completed")
        .await;
}
