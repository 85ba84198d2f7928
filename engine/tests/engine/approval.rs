//! Four eyes: who may agree to a campaign, and what an agreement is worth after a change.

use device_ota_domain::campaign::{Approval, CampaignDraft};
use device_ota_domain::{CampaignId, Role, Roles};
use device_ota_engine::{Caller, CampaignView, Error, Uploaded};

use crate::fixture::{Fixture, actor};

fn caller(name: &str) -> Caller {
    let roles = Roles::from_iter([Role::Operator, Role::Approver]);
    Caller::new(actor(name, roles))
}

async fn draft(fixture: &Fixture, name: &str) -> CampaignDraft {
    let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) =
        fixture.upload("2.0.0", b"image").await;
    let json =
        serde_json::json!({"name": name, "firmware_id": firmware.id, "requires_approval": true});
    serde_json::from_value(json).unwrap()
}

fn code<T>(result: Result<T, Error>) -> &'static str {
    result.err().map_or("ok", |error| error.code())
}

async fn approve(fixture: &Fixture, id: &CampaignId, by: &str) -> Result<CampaignView, Error> {
    approve_at(fixture, id, None, by).await
}

/// Reads the campaign, and approves what is there.
async fn approve_seen(fixture: &Fixture, id: &CampaignId, by: &str) -> Result<CampaignView, Error> {
    let seen = fixture.engine.campaign(id).await?.campaign.revision;
    approve_at(fixture, id, Some(seen), by).await
}

async fn approve_at(
    fixture: &Fixture,
    id: &CampaignId,
    seen: Option<i64>,
    by: &str,
) -> Result<CampaignView, Error> {
    let comment = Some("looked at".to_owned());
    let engine = &fixture.engine;
    engine
        .approve_campaign(id, comment, seen, &caller(by))
        .await
}

#[tokio::test]
async fn somebody_else_approves_and_a_change_voids_it() {
    let fixture = Fixture::new().await;
    fixture.device("d1").await;
    let engine = &fixture.engine;
    let created = engine
        .create_campaign(draft(&fixture, "a").await, &caller("author"))
        .await
        .unwrap();
    let id = created.campaign.id;
    assert_eq!(
        code(engine.start_campaign(&id, &caller("author")).await),
        "approval_required"
    );
    assert_eq!(code(approve(&fixture, &id, "author").await), "four_eyes");
    let view = approve(&fixture, &id, "second").await.unwrap();
    let verdict = view.campaign.approval.verdict().unwrap();
    assert_eq!(
        (verdict.by.as_str(), verdict.comment.as_deref()),
        ("second", Some("looked at"))
    );
    assert_eq!(verdict.at, engine.clock().now());

    // Whoever approved may change it; then somebody else has to look once more.
    let changed = engine
        .edit_campaign(&id, draft(&fixture, "b").await, None, &caller("second"))
        .await;
    assert_eq!(changed.unwrap().campaign.approval.status(), "pending");
    assert_eq!(
        code(engine.start_campaign(&id, &caller("author")).await),
        "approval_required"
    );
    assert_eq!(code(approve(&fixture, &id, "second").await), "four_eyes");
    assert_eq!(code(approve(&fixture, &id, "author").await), "four_eyes");
    // Who names no revision may have seen what it was before.
    assert_eq!(
        code(approve(&fixture, &id, "third").await),
        "revision_required"
    );
    approve_seen(&fixture, &id, "third").await.unwrap();
    let rejected = engine
        .reject_campaign(&id, None, None, &caller("fourth"))
        .await
        .unwrap();
    assert!(matches!(
        rejected.campaign.approval,
        Approval::Rejected { .. }
    ));
    let refused = engine
        .start_campaign(&id, &caller("author"))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().ends_with("it was rejected"),
        "{refused}"
    );
    approve_seen(&fixture, &id, "third").await.unwrap();
    engine.start_campaign(&id, &caller("author")).await.unwrap();
    assert_eq!(code(approve(&fixture, &id, "third").await), "wrong_state");
    let kept = engine.campaign(&id).await.unwrap().campaign.approval;
    assert_eq!(
        (kept.status(), kept.verdict().unwrap().by.as_str()),
        ("approved", "third")
    );
    fixture.stop().await;
}
