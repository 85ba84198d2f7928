//! Updates of one device: whom they are refused to, and that what was asked twice is asked once.

use device_ota_domain::{FirmwareId, Update};
use device_ota_engine::inbound::Uplink;
use device_ota_engine::ports::store::UpdateFilter;
use device_ota_engine::{DryRunQuery, Error, UpdateRequest, UpdateView, Uploaded};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

fn code<T>(result: &Result<T, Error>) -> &'static str {
    result.as_ref().err().map_or("ok", Error::code)
}

fn of(uploaded: Uploaded) -> FirmwareId {
    let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) = uploaded;
    firmware.id
}

async fn ask(
    fixture: &Fixture,
    device: &str,
    firmware: &FirmwareId,
    more: &str,
) -> Result<UpdateView, Error> {
    let request = format!(r#"{{"firmware_id":"{firmware}"{more}}}"#);
    let request: UpdateRequest = serde_json::from_str(&request).unwrap();
    let id = device.parse().unwrap();
    fixture.engine.update_device(&id, request, &tester()).await
}

async fn made(fixture: &Fixture) -> Vec<Update> {
    let page = device_ota_domain::page::Page::default();
    let filter = UpdateFilter::default();
    fixture.store.updates(&filter, page).await.unwrap()
}

#[tokio::test]
async fn what_is_asked_twice_is_asked_once() {
    let fixture = Fixture::new().await;
    fixture.device("d1").await;
    let two = of(fixture.upload("2.0.0", b"two").await);
    let (one, other) = tokio::join!(
        ask(&fixture, "d1", &two, ""),
        ask(&fixture, "d1", &two, r#","force_update":true"#)
    );
    let (first, refused) = if one.is_ok() {
        (one, other)
    } else {
        (other, one)
    };
    let first = first.unwrap().update;
    assert_eq!(code(&refused), "already_requested");
    let told = refused.unwrap_err().to_string();
    assert!(told.contains(first.id.as_str()), "{told}");
    assert_eq!(made(&fixture).await.len(), 1);

    // Another image is something else; and what has ended stands in nobody's way.
    let three = of(fixture.upload("3.0.0", b"three").await);
    ask(&fixture, "d1", &three, "").await.unwrap();
    fixture
        .engine
        .cancel_update(&first.id, &tester())
        .await
        .unwrap();
    ask(&fixture, "d1", &two, "").await.unwrap();
    assert_eq!(made(&fixture).await.len(), 3);
    fixture.stop().await;
}

#[tokio::test]
async fn a_failed_update_is_not_retried_beside_the_one_that_was_asked_for_anew() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let two = of(fixture.upload("2.0.0", b"two").await);
    let first = ask(&fixture, "d1", &two, r#","max_retries":0"#)
        .await
        .unwrap();
    let offer = fixture.offer().await;
    let error = r#","error":{"code":"install_failed","message":""}"#;
    fixture.progress(&device, &offer, 1, "failed", error).await;
    let second = ask(&fixture, "d1", &two, "").await.unwrap();
    let retried = fixture
        .engine
        .retry_update(&first.update.id, &tester())
        .await;
    assert_eq!(code(&retried), "already_requested");
    fixture
        .engine
        .cancel_update(&second.update.id, &tester())
        .await
        .unwrap();
    // The offer may have gone out: then the device is asked to stop, and asks for nothing more.
    fixture
        .engine
        .retry_update(&first.update.id, &tester())
        .await
        .unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_stands_in_the_way_once_its_offer_is_out() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let campaign = fixture.campaign("2.0.0", "").await;
    let two = fixture.updates(&campaign).await.remove(0).firmware.unwrap();
    let single = ask(&fixture, "d1", &two, "").await.unwrap();
    fixture
        .engine
        .cancel_update(&single.update.id, &tester())
        .await
        .unwrap();
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    let refused = ask(&fixture, "d1", &two, "").await;
    assert_eq!(code(&refused), "already_requested");
    assert!(refused.unwrap_err().to_string().contains(&offer.update_id));
    fixture.stop().await;
}

#[tokio::test]
async fn whoever_came_to_the_version_without_us_is_offered_nothing() {
    let mut fixture = Fixture::new().await;
    let engine = fixture.engine.clone();
    let (came, again) = (fixture.device("d1").await, fixture.device("d2").await);
    let two = of(fixture.upload("2.0.0", b"two").await);
    let waits = ask(&fixture, "d1", &two, "").await.unwrap();
    let check = r#"{"version":"2.0.0","nonce":"n","reason":"boot"}"#;
    for device in [&came, &again] {
        fixture.publish(device, Up::Check, check).await;
        let reply = fixture.reply_to("n").await;
        assert_eq!(reply["offer"], false, "{reply:#}");
    }
    // Who asks for what the device runs already means it.
    let forced = ask(&fixture, "d2", &two, r#","force_update":true"#).await;
    let forced = forced.unwrap();
    for device in [&came, &again] {
        let here = Uplink::Online { session: i64::MAX };
        fixture.submit(device, here).await.wait().await;
    }
    engine.dispatch_all().await.unwrap();
    assert_eq!(fixture.offer().await.update_id, forced.update.id.as_str());
    assert!(fixture.nothing_sent());
    let ended = engine.update(&waits.update.id).await.unwrap().update;
    assert_eq!((ended.status(), ended.attempt), ("completed", 0));
    assert_eq!(ended.from_version.as_deref(), Some("1.0.0"));
    let events = fixture.store.events_for("nobody", 100).await.unwrap();
    let told = events
        .iter()
        .filter(|event| event.event_type == "update.completed");
    assert_eq!(told.count(), 1);
    assert_eq!(
        fixture.store.ledger().await.unwrap(),
        fixture.store.ledger_by_rows().await.unwrap()
    );
    fixture.stop().await;
}

#[tokio::test]
async fn one_device_and_a_campaign_are_judged_alike() {
    let fixture = Fixture::new().await;
    fixture.device("d1").await;
    let metadata = r#"{"name":"Image","version":"2.0.0","device_model":"M","manufacturer":"A","hw_revisions":["B"]}"#;
    let mut upload = fixture.engine.begin_upload("image.bin").await.unwrap();
    upload
        .write(bytes::Bytes::from_static(b"for B"))
        .await
        .unwrap();
    let metadata = serde_json::from_str(metadata).unwrap();
    let for_b = of(upload.finish(metadata, None, &tester()).await.unwrap());
    let same = of(fixture.upload("1.0.0", b"one").await);
    for (firmware, why) in [(&for_b, "wrong_hw_revision"), (&same, "already_installed")] {
        assert_eq!(code(&ask(&fixture, "d1", firmware, "").await), why);
        let draft = format!(r#"{{"name":"c","firmware_id":"{firmware}","target_devices":["d1"]}}"#);
        let draft = serde_json::from_str(&draft).unwrap();
        let dry = fixture
            .engine
            .dry_run(draft, &DryRunQuery::default())
            .await
            .unwrap();
        let reasons: Vec<_> = dry.summary.left_out.keys().map(|why| why.name()).collect();
        assert_eq!(reasons, [why]);
    }
    let forced = r#","force_update":true"#;
    assert_eq!(
        code(&ask(&fixture, "d1", &for_b, forced).await),
        "wrong_hw_revision"
    );
    assert_eq!(code(&ask(&fixture, "d1", &same, forced).await), "ok");
    for (more, why) in [
        (r#","timeout_minutes":0.001"#, "invalid_update"),
        (r#","timeout_minutes":43200.1"#, "invalid_update"),
        (r#","max_retries":101"#, "invalid_update"),
        (r#","max_retries":100,"timeout_minutes":43200"#, "ok"),
    ] {
        let version = format!("9.0.{}", made(&fixture).await.len());
        let other = of(fixture.upload(&version, version.as_bytes()).await);
        assert_eq!(
            code(&ask(&fixture, "d1", &other, more).await),
            why,
            "{more}"
        );
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_waits_until_it_is_fit_for_the_image_and_is_told_why() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let engine = fixture.engine.clone();
    let two = of(fixture.upload("2.0.0", b"two").await);
    let asks = async |percent: &str| {
        let change = format!(r#"{{"min_battery_percent":{percent}}}"#);
        let change = serde_json::from_str(&change).unwrap();
        let changed = engine.change_firmware(&two, change, &tester()).await;
        changed.unwrap();
        engine.dispatch_all().await.unwrap();
    };
    asks("30").await;
    let heartbeat = r#"{"version":"1.0.0","battery":{"percent":12}}"#;
    fixture.publish(&device, Up::Heartbeat, heartbeat).await;
    let single = ask(&fixture, "d1", &two, "").await.unwrap();
    let why = async || {
        let view = engine.update(&single.update.id).await.unwrap();
        view.why.map(|why| why.to_string())
    };
    let low = "the device's battery is at 12 % and must be at 30 %";
    assert_eq!(why().await.as_deref(), Some(low));
    engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    let check = r#"{"version":"1.0.0","nonce":"n2","reason":"poll"}"#;
    fixture.publish(&device, Up::Check, check).await;
    let reply = fixture.reply_to("n2").await;
    assert_eq!(reply["reason"], low, "{reply:#}");
    // What the image asks for by now is what holds.
    asks("20").await;
    let low = "the device's battery is at 12 % and must be at 20 %";
    assert_eq!(why().await.as_deref(), Some(low));
    asks("null").await;
    assert_eq!(fixture.offer().await.update_id, single.update.id.as_str());
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_goes_back_to_what_it_was_registered_with_though_it_never_said_so() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let check = r#"{"version":"1.5.0","nonce":"n","reason":"boot"}"#;
    fixture.publish(&device, Up::Check, check).await;
    fixture.upload("1.0.0", b"one").await;
    let back = async |version: &str| {
        fixture
            .engine
            .roll_back_device(&device.id, version, "why not", &tester())
            .await
    };
    assert_eq!(code(&back("0.9.0").await), "never_installed");
    assert_eq!(code(&back("1.0.0").await), "ok");
    assert_eq!(code(&back("1.0.0").await), "already_requested");
    fixture.stop().await;
}

#[tokio::test]
async fn downloads_are_counted_though_the_database_was_away() {
    let (fixture, _work) = Fixture::stopped().await;
    let two = of(fixture.upload("2.0.0", b"two").await);
    let grant = fixture.engine.grant_download(&two).await.unwrap();
    assert_eq!(
        grant
            .expires_at
            .duration_since(fixture.engine.clock().now()),
        SignedDuration::from_hours(1)
    );
    fixture.engine.count_grant(&grant);
    fixture
        .sql("ALTER TABLE firmware RENAME TO elsewhere")
        .await;
    assert!(fixture.engine.keep_time().await.is_err());
    fixture
        .sql("ALTER TABLE elsewhere RENAME TO firmware")
        .await;
    fixture.engine.count_grant(&grant);
    fixture.engine.keep_time().await.unwrap();
    fixture.engine.keep_time().await.unwrap();
    let counted = fixture.store.firmware(&two).await.unwrap().unwrap();
    assert_eq!(counted.download_count, 2);
}
