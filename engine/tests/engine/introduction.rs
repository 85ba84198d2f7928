//! A campaign that names devices which the Device Service alone knows: who is asked for, how many, for how long, and what comes of
//! those that were answered for when others were not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use device_ota_domain::campaign::CampaignDraft;
use device_ota_domain::page::Page;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::{CampaignId, DeviceId, FirmwareId};
use device_ota_engine::ports::device_service::{DeviceService, DeviceServiceUnavailable, Met};
use device_ota_engine::ports::telemetry::DeviceFilter;
use device_ota_engine::{Error, Uploaded};

use crate::fixture::{Fixture, tester};

/// Longer than all questions for one campaign may take.
const TOO_LONG: Duration = Duration::from_secs(11);

/// Knows each device whose id begins with `frame`, and remembers whom it was asked for.
#[derive(Default)]
struct Frames(Mutex<Vec<String>>);

impl Frames {
    fn asked(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[async_trait]
impl DeviceService for Frames {
    async fn device(&self, id: &DeviceId) -> Result<Met, DeviceServiceUnavailable> {
        let name = id.as_str();
        self.0.lock().unwrap().push(name.to_owned());
        if name.starts_with("slow") {
            // Nothing else waits for this runtime's clock.
            tokio::time::pause();
            tokio::time::advance(TOO_LONG).await;
            tokio::time::resume();
            std::future::pending::<()>().await;
        }
        if name.starts_with("broken") {
            return Err(DeviceServiceUnavailable("it answered 500".to_owned()));
        }
        if !name.starts_with("frame") {
            return Ok(Met::Nobody);
        }
        let known =
            format!(r#"{{"device_id":"{id}","device_model":"M","firmware_version":"1.0.0"}}"#);
        Ok(Met::Device(serde_json::from_str(&known).unwrap()))
    }
}

async fn beside() -> (Fixture, Arc<Frames>, FirmwareId) {
    let frames = Arc::new(Frames::default());
    let fixture = Fixture::with_device_service(frames.clone()).await;
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        fixture.upload("2.0.0", b"2.0.0").await;
    (fixture, frames, image.id)
}

fn ids(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n:04}")).collect()
}

fn naming(firmware: &FirmwareId, names: &[String]) -> CampaignDraft {
    let draft = serde_json::json!({
        "name": "c", "firmware_id": firmware, "deployment_strategy": "immediate", "target_devices": names,
    });
    serde_json::from_value(draft).unwrap()
}

async fn registered(fixture: &Fixture) -> usize {
    let (all, page) = (DeviceFilter::default(), Page::default());
    fixture.engine.devices(&all, page).await.unwrap().len()
}

#[tokio::test]
async fn those_of_several_pages_are_asked_for() {
    let (fixture, frames, firmware) = beside().await;
    let draft = naming(&firmware, &ids("frame", 450));
    let made = fixture.engine.create_campaign(draft, &tester()).await;
    assert_eq!(made.unwrap().campaign.target_count, 450);
    assert_eq!(frames.asked(), 450);
    fixture.stop().await;
}

#[tokio::test]
async fn no_more_than_a_thousand_are_asked_for() {
    let (fixture, frames, firmware) = beside().await;
    let draft = naming(&firmware, &ids("nobody", 1_001));
    let made = fixture.engine.create_campaign(draft, &tester()).await;
    assert_eq!(frames.asked(), 1_000);
    let left_out = made.unwrap().campaign.spec.targets.left_out;
    assert_eq!(left_out[&Exclusion::UnknownDevice], 1_001);
    fixture.stop().await;
}

#[tokio::test]
async fn who_was_told_of_in_time_is_registered_when_others_were_not() {
    let (fixture, frames, firmware) = beside().await;
    let names = [ids("frame", 40), ids("slow", 1)].concat();
    let draft = naming(&firmware, &names);
    let refused = fixture.engine.create_campaign(draft, &tester()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), "device_service_unavailable");
    let told = refused.to_string();
    assert!(told.contains("within 10 s of 1 of the devices"), "{told}");
    assert!(
        !told.contains("frame-") && !told.contains("slow-"),
        "{told}"
    );
    assert_eq!(registered(&fixture).await, 40);
    // Whoever tries again waits for the one alone.
    let before = frames.asked();
    let draft = naming(&firmware, &names);
    let refused = fixture.engine.create_campaign(draft, &tester()).await;
    assert_eq!(refused.unwrap_err().code(), "device_service_unavailable");
    assert_eq!(frames.asked(), before + 1);
    fixture.stop().await;
}

#[tokio::test]
async fn one_that_cannot_be_told_of_keeps_back_nobody_else() {
    let (fixture, frames, firmware) = beside().await;
    let draft = naming(&firmware, &[ids("broken", 1), ids("frame", 40)].concat());
    let refused = fixture.engine.create_campaign(draft, &tester()).await;
    match refused.unwrap_err() {
        Error::DeviceService { id, .. } => assert_eq!(id.as_str(), "broken-0000"),
        other => panic!("{other}"),
    }
    assert_eq!((frames.asked(), registered(&fixture).await), (41, 40));
    fixture.stop().await;
}

#[tokio::test]
async fn devices_that_a_stage_names_are_asked_for_too() {
    let (fixture, frames, firmware) = beside().await;
    let draft = serde_json::json!({
        "name": "c", "firmware_id": firmware, "deployment_strategy": "staged",
        "stages": [{"devices": ["frame-0001", "frame-0002"]}, {"percent": 100}],
    });
    let draft: CampaignDraft = serde_json::from_value(draft).unwrap();
    let made = fixture.engine.create_campaign(draft, &tester()).await;
    assert_eq!(
        (made.unwrap().campaign.target_count, frames.asked()),
        (2, 2)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn nobody_is_asked_for_or_registered_by_a_change_that_is_refused() {
    let (fixture, frames, firmware) = beside().await;
    let here = [String::from("here")];
    fixture.device("here").await;
    let (engine, by) = (&fixture.engine, tester());
    let draft = || naming(&firmware, &here);
    let strangers = || naming(&firmware, &ids("frame", 3));
    let made = engine.create_campaign(draft(), &by).await.unwrap();
    let id = made.campaign.id;
    let unknown = CampaignId::from_entropy([7; 8]);
    let refused = engine.edit_campaign(&unknown, strangers(), None, &by).await;
    assert_eq!(refused.unwrap_err().code(), "not_found");
    let stale = Some(made.campaign.revision + 1);
    let refused = engine.edit_campaign(&id, strangers(), stale, &by).await;
    assert_eq!(refused.unwrap_err().code(), "changed_meanwhile");
    engine.start_campaign(&id, &by).await.unwrap();
    let refused = engine.edit_campaign(&id, strangers(), None, &by).await;
    assert_eq!(refused.unwrap_err().code(), "wrong_state");
    let gone = engine
        .create_campaign(draft(), &by)
        .await
        .unwrap()
        .campaign
        .id;
    engine.delete_campaign(&gone, None, &by).await.unwrap();
    let refused = engine.edit_campaign(&gone, strangers(), None, &by).await;
    assert_eq!(refused.unwrap_err().code(), "deleted");
    assert_eq!((frames.asked(), registered(&fixture).await), (0, 1));

    let other = engine.create_campaign(draft(), &by).await.unwrap().campaign;
    let changed = engine.edit_campaign(&other.id, strangers(), Some(other.revision), &by);
    assert_eq!(changed.await.unwrap().campaign.target_count, 3);
    fixture.stop().await;
}
