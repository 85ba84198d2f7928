//! What campaigns look like.

use device_ota_domain::Campaign;
use device_ota_domain::campaign::Accepted;
use device_ota_domain::why::Why;

use super::super::firmware::tests::firmware;
use super::*;

fn view(state: CampaignState, counts: Counts) -> CampaignView {
    let firmware = firmware();
    let draft = serde_json::json!({
        "name": "Security Patch Q4 2025", "firmware_id": firmware.id, "deployment_strategy": "staged",
        "priority": "high", "auto_rollback": true, "failure_threshold_percent": 20,
        "stages": [{"ring": "canary"}]
    });
    let at = Timestamp::from_second(1_766_052_300).unwrap();
    let campaign = Campaign {
        id: "camp_789abcdef0123456".parse().unwrap(),
        spec: serde_json::from_value::<CampaignDraft>(draft)
            .unwrap()
            .into_spec(10.0, 7, device_ota_domain::ring::Shares::default())
            .unwrap(),
        state,
        approval: Approval::NotRequired,
        target_count: 2,
        revision: 0,
        created_at: at,
        updated_at: at,
        created_by: "admin".to_owned(),
        next_offer_at: None,
        readings: Vec::new(),
        deleted_at: None,
    };
    CampaignView {
        campaign,
        counts,
        firmware,
        waits: vec![Why::GateSamples { have: 1, need: 2 }],
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a whole body")]
fn before_its_start_every_device_it_means_is_pending() {
    let view = view(CampaignState::Created, Counts::default());
    let mut json = serde_json::to_value(CampaignDto::from(&view)).unwrap();
    let fields = json.as_object_mut().unwrap();
    for long in [
        "firmware", "approval", "requires", "rollback", "schedule", "failures", "health",
    ] {
        fields.insert(long.to_owned(), "…".into());
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap(), @r#"
    {
      "abort": [],
      "approval": "…",
      "approved_by": null,
      "auto_rollback": true,
      "bandwidth_bytes_per_second": null,
      "batch_size": 100,
      "campaign_id": "camp_789abcdef0123456",
      "cancelled_devices": 0,
      "completed_at": null,
      "completed_devices": 0,
      "continuous": false,
      "created_at": "2025-12-18T10:05:00Z",
      "created_by": "admin",
      "deleted_at": null,
      "deployment_strategy": "staged",
      "description": null,
      "draft": null,
      "failed_devices": 0,
      "failure_min_samples": 1,
      "failure_rate_percent": 0.0,
      "failure_threshold_percent": 20.0,
      "failures": "…",
      "firmware": "…",
      "give_up_after_hours": null,
      "health": "…",
      "health_figures": [],
      "in_progress_devices": 0,
      "left_out": {},
      "max_concurrent_updates": 100,
      "max_retries": 3,
      "name": "Security Patch Q4 2025",
      "pending_devices": 2,
      "priority": "high",
      "rate": null,
      "regressed_devices": 0,
      "requires": "…",
      "requires_approval": false,
      "revision": 0,
      "rollback": "…",
      "rollback_trigger": null,
      "rollout_percentage": 100.0,
      "schedule": "…",
      "staged_devices": 0,
      "stages": [
        {
          "cancelled": 0,
          "completed": 0,
          "count": null,
          "devices": 0,
          "failed": 0,
          "gate": {
            "manual": false,
            "min_samples": null,
            "min_success_percent": 80.0,
            "soak_seconds": 0
          },
          "in_progress": 0,
          "name": "canary",
          "open": false,
          "pending": 0,
          "percent": 5.0,
          "regressed": 0,
          "staged": 0
        },
        {
          "cancelled": 0,
          "completed": 0,
          "count": null,
          "devices": 0,
          "failed": 0,
          "gate": {
            "manual": false,
            "min_samples": null,
            "min_success_percent": 80.0,
            "soak_seconds": 0
          },
          "in_progress": 0,
          "name": "100%",
          "open": false,
          "pending": 0,
          "percent": 100.0,
          "regressed": 0,
          "staged": 0
        }
      ],
      "started_at": null,
      "status": "created",
      "status_reason": null,
      "target_device_count": 2,
      "target_filters": null,
      "target_groups": [],
      "timeout_minutes": 60.0,
      "timeouts": {
        "download_minutes": null,
        "install_minutes": null
      },
      "total_devices": 2,
      "up_to_stage": null,
      "updated_at": "2025-12-18T10:05:00Z",
      "waits": [
        {
          "code": "gate_samples",
          "detail": "the stage has 1 results and needs 2",
          "have": 1,
          "need": 2
        }
      ],
      "windows": []
    }
    "#);
}

#[test]
fn a_running_campaign_counts_by_stage_and_as_a_whole() {
    let started_at = Timestamp::from_second(1_766_052_400).unwrap();
    let state = CampaignState::InProgress(Running {
        started_at,
        open_stage: 0,
        stage_opened_at: started_at,
        soak_since: None,
        accepted: Accepted::default(),
        up_to_stage: Some(0),
    });
    let canary = Tally {
        completed: 3,
        failed: 1,
        in_flight: 2,
        ..Tally::default()
    };
    let rest = Tally {
        pending: 94,
        ..Tally::default()
    };
    let view = view(
        state,
        Counts {
            stages: vec![canary, rest],
            ..Counts::default()
        },
    );
    let dto = CampaignDto::from(&view);
    assert_eq!(dto.up_to_stage, Some("canary"));
    let counts = (
        dto.total_devices,
        dto.pending_devices,
        dto.in_progress_devices,
        dto.completed_devices,
    );
    assert_eq!(counts, (100, 94, 2, 3));
    assert!((dto.failure_rate_percent - 25.0).abs() < f64::EPSILON);
    let stages: Vec<_> = dto
        .stages
        .iter()
        .map(|s| (s.name, s.open, s.devices, s.completed))
        .collect();
    assert_eq!(stages, [("canary", true, 6, 3), ("100%", false, 94, 0)]);
}

#[test]
fn a_rollback_that_was_withdrawn_has_not_failed() {
    let rollbacks = Tally {
        completed: 1,
        failed: 2,
        cancelled: 3,
        ..Tally::default()
    };
    let counts = Counts {
        rollbacks,
        ..Counts::default()
    };
    let view = view(CampaignState::Created, counts);
    let json = serde_json::to_value(CampaignDto::from(&view)).unwrap();
    assert_eq!(
        json.get("rollback"),
        Some(
            &serde_json::json!({"pending": 0, "in_flight": 0, "completed": 1, "failed": 2, "cancelled": 3})
        )
    );
}
