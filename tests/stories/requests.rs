//! What the log tells of requests: what was refused and what was changed, each with the id that the client was told.

use serde_json::{Value, json};

use crate::harness::{Admin, Options, Service, device_json, within};

matrix!(what_is_refused_and_what_is_changed_is_told_with_its_id: sqlite_gateway);

async fn what_is_refused_and_what_is_changed_is_told_with_its_id(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let stranger = Admin::new(&service.ready().http, "no-key-of-ours");
    let refused = stranger.get("/api/v1/ota/campaigns").await.refused(401);
    let told = line_of(&service, &refused["request_id"]).await;
    insta::assert_json_snapshot!(told, {
        ".timestamp" => "[time]", ".fields.elapsed_ms" => "[ms]", "[\"fields\"][\"request.id\"]" => "[id]",
    }, @r#"
    {
      "fields": {
        "client.address": "127.0.0.1",
        "elapsed_ms": "[ms]",
        "error.code": "unauthorized",
        "http.method": "GET",
        "http.path": "/api/v1/ota/campaigns",
        "http.status": 401,
        "message": "request",
        "request.id": "[id]"
      },
      "level": "INFO",
      "target": "device_ota_http::gate",
      "timestamp": "[time]"
    }
    "#);
    let missing = admin.get("/api/v1/ota/devices/frame-9").await.refused(404);
    let told = line_of(&service, &missing["request_id"]).await;
    assert_eq!(told["fields"]["error.code"], "not_found", "{told}");

    let devices = json!({ "devices": [device_json("frame-1")] });
    let request = admin.client().post(admin.url("/api/v1/ota/devices"));
    let request = request.json(&devices).header("X-Request-Id", "story-7");
    admin.send(request).await.expect(201);
    let told = line_of(&service, &json!("story-7")).await;
    assert_eq!(
        (&told["level"], &told["fields"]["http.status"]),
        (&json!("INFO"), &json!(201)),
        "{told}"
    );
}

/// The line of a request, parsed.
async fn line_of(service: &Service, id: &Value) -> Value {
    let of_request = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_it = line["fields"]["message"] == "request" && line["fields"]["request.id"] == *id;
        is_it.then_some(line)
    };
    let found = within(
        "the log tells of the request",
        service.log().find(of_request),
    )
    .await;
    found.expect("the service runs")
}
