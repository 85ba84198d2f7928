//! Two administrators at once: of several that want the same step, one takes it and the others are told.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Admin, Options, Service, device_json, image, image_metadata};

matrix!(exactly_one_takes_each_step: sqlite_gateway, postgres_gateway);
matrix!(one_image_uploaded_by_many_is_one_record: sqlite_gateway, postgres_gateway);
matrix!(start_and_cancel_at_once_leave_one_truth: sqlite_gateway, postgres_gateway);

/// Administrators at a time.
const MANY: usize = 8;

/// Sends the same request many times at once; the statuses, sorted.
async fn all_at_once(admin: &Admin, campaign: &str, action: &str) -> Vec<u16> {
    let answers = join_all((0..MANY).map(|_| admin.act(campaign, action))).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    statuses
}

async fn campaign_for_one(service: &Service) -> String {
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let firmware = admin.image("2.1.0").await;
    admin
        .create_campaign(
            json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await
}

async fn exactly_one_takes_each_step(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let campaign = campaign_for_one(&service).await;
    let mut one = vec![200];
    one.extend([409; MANY - 1]);
    for (action, status) in [
        ("start", "in_progress"),
        ("pause", "paused"),
        ("resume", "in_progress"),
        ("cancel", "cancelled"),
    ] {
        assert_eq!(
            all_at_once(&admin, &campaign, action).await,
            one,
            "{action}"
        );
        assert_eq!(admin.campaign(&campaign).await["status"], status);
    }
    let counted = admin.campaign(&campaign).await;
    assert_eq!(
        counted["cancelled_devices"], 1,
        "targets were made once: {counted:#}"
    );
    assert_eq!(counted["total_devices"], 1);
    assert_eq!(admin.updates_of("frame-1").await.len(), 1);
}

async fn start_and_cancel_at_once_leave_one_truth(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let campaign = campaign_for_one(&service).await;
    admin.act(&campaign, "start").await.expect(200);
    let (pause, cancel) = tokio::join!(
        admin.act(&campaign, "pause"),
        admin.act(&campaign, "cancel")
    );
    // A pause may come before the cancellation, not after it; the cancellation may come at any time.
    assert_eq!(cancel.status, 200, "{:#}", cancel.body);
    assert!([200, 409].contains(&pause.status), "{:#}", pause.body);
    assert_eq!(admin.campaign(&campaign).await["status"], "cancelled");
    admin
        .act("camp_0000000000000000", "start")
        .await
        .refused(404);
}

async fn one_image_uploaded_by_many_is_one_record(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let metadata = image_metadata("2.1.0");
    let uploads = (0..MANY).map(|_| admin.upload(&metadata, "image.bin", image("2.1.0")));
    let mut answers = join_all(uploads).await;
    answers.sort_by_key(|answer| answer.status);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    let mut expected = vec![200; MANY - 1];
    expected.push(201);
    assert_eq!(statuses, expected);
    let ids: Vec<&Value> = answers
        .iter()
        .map(|answer| &answer.body["firmware_id"])
        .collect();
    assert!(
        ids.windows(2).all(|pair| pair.first() == pair.last()),
        "{ids:?}"
    );
    let list = admin.get("/api/v1/ota/firmware").await.expect(200);
    assert_eq!(list["firmware"].as_array().unwrap().len(), 1);

    // Different bytes at once: one of them is the image, and the other is told.
    let (one, other) = (image("a"), image("b"));
    let metadata = image_metadata("3.0.0");
    let (one, other) = tokio::join!(
        admin.upload(&metadata, "i.bin", one),
        admin.upload(&metadata, "i.bin", other)
    );
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
}
