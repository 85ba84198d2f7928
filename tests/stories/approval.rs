//! Campaigns before their start: changed, approved by somebody else, deleted.

use serde_json::{Value, json};

use crate::harness::{Admin, Answer, Options, Service, device_json};

matrix!(a_campaign_that_asks_for_an_approval_does_not_start_without: sqlite_gateway, postgres_gateway);
matrix!(a_verdict_is_on_what_was_seen: sqlite_gateway, postgres_gateway);
matrix!(a_campaign_is_changed_before_its_start_and_not_after: sqlite_gateway, postgres_gateway);
matrix!(what_is_read_of_a_campaign_is_put_back_unchanged: sqlite_gateway, postgres_gateway);
matrix!(a_deleted_campaign_leaves_the_lists_and_can_be_read: sqlite_gateway, postgres_gateway);

const CAMPAIGNS: &str = "/api/v1/ota/campaigns";

async fn set_up(options: Options) -> (Service, Admin, String) {
    let service = Service::start(options).await;
    let admin = service.admin();
    admin
        .register(&[device_json("one"), device_json("two")])
        .await;
    let firmware = admin.image("2.1.0").await;
    (service, admin, firmware)
}

/// A client with a key of its own.
async fn key(service: &Service, name: &str, role: &str) -> Admin {
    let spec = json!({ "name": name, "roles": [role] });
    let made = service
        .admin()
        .post("/api/v1/ota/keys", spec)
        .await
        .expect(201);
    Admin::new(&service.ready().http, made["secret"].as_str().unwrap())
}

async fn put(admin: &Admin, campaign: &str, revision: Option<&str>, draft: &Value) -> Answer {
    let request = admin
        .client()
        .put(admin.url(&format!("{CAMPAIGNS}/{campaign}")))
        .json(draft);
    let request = match revision {
        Some(revision) => request.header("If-Match", revision),
        None => request,
    };
    admin.send(request).await
}

/// Approves what was seen.
async fn approve_at(approver: &Admin, campaign: &str, revision: &Value) -> Answer {
    let path = approver.url(&format!("{CAMPAIGNS}/{campaign}/approve"));
    let request = approver.client().post(path);
    let seen = format!("\"{revision}\"");
    approver.send(request.header("If-Match", seen)).await
}

async fn a_campaign_that_asks_for_an_approval_does_not_start_without(options: Options) {
    let (service, admin, firmware) = set_up(options).await;
    let draft = json!({"name": "audited", "firmware_id": firmware, "requires_approval": true});
    let id = admin.create_campaign(draft).await;
    let campaign = admin.campaign(&id).await;
    assert_eq!(campaign["requires_approval"], true);
    assert_eq!(
        campaign["approval"],
        json!({"status": "pending", "by": null, "at": null, "comment": null})
    );
    assert_eq!(
        admin.act(&id, "start").await.refused(409)["code"],
        "approval_required"
    );
    for verdict in ["approve", "reject"] {
        let refused = admin.act(&id, verdict).await.refused(403);
        assert_eq!(refused["code"], "four_eyes");
        assert_eq!(
            refused["detail"],
            "\"admin\" wrote this campaign; somebody else must approve it"
        );
    }
    let why = admin
        .get(&format!("{CAMPAIGNS}/{id}/devices/one/why"))
        .await
        .expect(200);
    assert_eq!(why["reasons"][0]["code"], "unapproved");
    let approver = key(&service, "security", "approver").await;
    approver.act(&id, "start").await.refused(403);
    let path = format!("{CAMPAIGNS}/{id}/approve");
    let said = json!({"comment": "after the audit"});
    let seen = approver.post(&path, said).await.expect(200);
    assert_eq!(seen["approved_by"], "security");
    let approval = &seen["approval"];
    assert_eq!(
        (&approval["status"], &approval["by"], &approval["comment"]),
        (
            &json!("approved"),
            &json!("security"),
            &json!("after the audit")
        )
    );
    assert!(approval["at"].is_string());
    let operator = key(&service, "somebody", "operator").await;
    operator.act(&id, "approve").await.refused(403);
    let rejected = approver
        .post(&format!("{CAMPAIGNS}/{id}/reject"), json!({}))
        .await
        .expect(200);
    assert_eq!(
        (&rejected["approval"]["status"], &rejected["approved_by"]),
        (&json!("rejected"), &Value::Null)
    );
    admin.act(&id, "start").await.refused(409);
    approve_at(&approver, &id, &rejected["revision"])
        .await
        .expect(200);
    let started = operator.act(&id, "start").await.expect(200);
    assert_eq!(
        (&started["status"], &started["approved_by"]),
        (&json!("in_progress"), &json!("security"))
    );
    let free = admin
        .create_campaign(json!({"name": "free", "firmware_id": firmware}))
        .await;
    assert_eq!(
        admin.act(&free, "approve").await.refused(409)["code"],
        "approval_not_required"
    );
    assert_eq!(
        admin.campaign(&free).await["approval"]["status"],
        "not_required"
    );
    admin.act(&free, "start").await.expect(200);
}

async fn a_campaign_is_changed_before_its_start_and_not_after(options: Options) {
    let (_service, admin, firmware) = set_up(options).await;
    let draft = |name: &str, devices: Value| {
        json!({
            "name": name, "firmware_id": firmware, "target_devices": devices, "deployment_strategy": "immediate",
        })
    };
    let id = admin
        .create_campaign(json!({"name": "first", "firmware_id": firmware}))
        .await;
    let first = admin.campaign(&id).await;
    assert_eq!(
        (&first["revision"], &first["target_device_count"]),
        (&json!(0), &json!(2))
    );
    let second = draft("second", json!(["two"]));
    let changed = put(&admin, &id, Some("\"0\""), &second).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["revision"]),
        (&json!("second"), &json!(1))
    );
    assert_eq!(
        (&changed["target_device_count"], &changed["created_at"]),
        (&json!(1), &first["created_at"])
    );
    assert_eq!(changed["stages"].as_array().unwrap().len(), 1);
    let stale = put(&admin, &id, Some("\"0\""), &second).await.refused(409);
    assert_eq!(stale["code"], "changed_meanwhile");
    let invalid = put(&admin, &id, Some("first"), &second).await.refused(400);
    assert_eq!(invalid["code"], "invalid_header");
    put(&admin, &id, None, &json!({"name": "third"}))
        .await
        .refused(400);
    put(&admin, "camp_0000000000000000", None, &second)
        .await
        .refused(404);

    admin.act(&id, "start").await.expect(200);
    let devices = admin
        .get(&format!("{CAMPAIGNS}/{id}/devices"))
        .await
        .expect(200);
    assert_eq!(
        (&devices["count"], &devices["devices"][0]["device_id"]),
        (&json!(1), &json!("two"))
    );
    let late = put(&admin, &id, None, &second).await.refused(409);
    assert_eq!(
        late["detail"],
        "a campaign that is in_progress cannot be changed; create another one"
    );

    // Whoever may change a campaign cannot change the approval away.
    let audited = json!({"name": "audited", "firmware_id": firmware, "requires_approval": true});
    let id = admin.create_campaign(audited).await;
    let changed = put(&admin, &id, None, &draft("bare", json!(["one"])))
        .await
        .expect(200);
    assert_eq!(changed["approval"]["status"], "pending");
    admin.act(&id, "start").await.refused(409);
}

async fn a_deleted_campaign_leaves_the_lists_and_can_be_read(options: Options) {
    let (_service, admin, firmware) = set_up(options).await;
    let id = admin
        .start_campaign(json!({"name": "c", "firmware_id": firmware}))
        .await;
    let delete = async || {
        admin
            .send(
                admin
                    .client()
                    .delete(admin.url(&format!("{CAMPAIGNS}/{id}"))),
            )
            .await
    };
    let active = delete().await.refused(409);
    assert_eq!(
        active["detail"],
        "a campaign that is in_progress cannot be deleted; cancel it first"
    );
    admin.act(&id, "cancel").await.expect(200);
    let listed = format!("{CAMPAIGNS}?firmware_id={firmware}");
    assert_eq!(admin.get(&listed).await.expect(200)["count"], 1);
    let deleted = delete().await.expect(200);
    assert!(deleted["deleted_at"].is_string(), "{deleted}");
    assert_eq!(admin.get(&listed).await.expect(200)["count"], 0);
    assert_eq!(admin.get(CAMPAIGNS).await.expect(200)["count"], 0);
    let mut read = admin.campaign(&id).await;
    read["draft"] = Value::Null; // a reading alone shows it
    assert_eq!(read, deleted);
    assert_eq!(delete().await.refused(409)["code"], "deleted");
    assert_eq!(
        admin.act(&id, "rollback").await.refused(409)["code"],
        "deleted"
    );
}

async fn a_verdict_is_on_what_was_seen(options: Options) {
    let (service, admin, firmware) = set_up(options).await;
    let mut draft = json!({"name": "n", "firmware_id": firmware, "requires_approval": true});
    let id = admin.create_campaign(draft.clone()).await;
    let approver = key(&service, "security", "approver").await;
    let says = async |verdict: &str, revision: &str| {
        let path = approver.url(&format!("{CAMPAIGNS}/{id}/{verdict}"));
        let request = approver.client().post(path).header("If-Match", revision);
        approver.send(request).await
    };
    let seen = format!("\"{}\"", admin.campaign(&id).await["revision"]);
    draft["failure_threshold_percent"] = json!(90);
    put(&admin, &id, None, &draft).await.expect(200);
    for verdict in ["approve", "reject"] {
        let refused = says(verdict, &seen).await.refused(409);
        assert_eq!(refused["code"], "changed_meanwhile");
        says(verdict, "soon").await.refused(400);
    }
    // Who names no revision may have seen what it was before.
    for any in [None, Some("*")] {
        let path = approver.url(&format!("{CAMPAIGNS}/{id}/approve"));
        let request = approver.client().post(path);
        let request = match any {
            Some(any) => request.header("If-Match", any),
            None => request,
        };
        let refused = approver.send(request).await.refused(409);
        assert_eq!(refused["code"], "revision_required");
    }
    let campaign = admin.campaign(&id).await;
    assert_eq!(campaign["approval"]["status"], "pending");
    let seen = campaign["revision"].to_string();
    let rejected = says("reject", &seen).await.expect(200);
    assert_eq!(rejected["approval"]["status"], "rejected");
    says("approve", &seen).await.refused(409);
    let seen = rejected["revision"].to_string();
    let agreed = says("approve", &seen).await.expect(200);
    assert_eq!(agreed["approval"]["status"], "approved");
}

async fn what_is_read_of_a_campaign_is_put_back_unchanged(options: Options) {
    let (service, admin, firmware) = set_up(options).await;
    let draft = json!({
        "name": "one alone", "firmware_id": firmware, "target_devices": ["one"], "deployment_strategy": "canary",
        "stages": [{ "percent": 12.5, "gate": { "min_success_percent": 90, "soak_seconds": 60 } }],
        "failure_threshold_percent": 7.5, "timeout_minutes": 0.5,
    });
    let id = admin.create_campaign(draft).await;
    let read = admin.campaign(&id).await;
    assert_eq!(read["draft"]["target_devices"], json!(["one"]));
    let put_back = put(&admin, &id, None, &read["draft"]).await.expect(200);
    assert_eq!(put_back["target_device_count"], 1, "and not the fleet");
    let again = admin.campaign(&id).await;
    assert_eq!(again["draft"], read["draft"]);
    assert_eq!(again["stages"], read["stages"]);

    // What a list shows is no draft, and is refused rather than taken for everybody.
    let list = admin.get(CAMPAIGNS).await.expect(200);
    let listed = &list["campaigns"][0]["draft"];
    assert_eq!(*listed, Value::Null);
    assert_eq!(put(&admin, &id, None, listed).await.status, 400);
    drop(service);
}
