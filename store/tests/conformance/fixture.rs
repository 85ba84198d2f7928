//! What the stories are told with: a small fleet, an image, a campaign, and short names for the steps between.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{
    Approval, Campaign, CampaignDraft, CampaignState, Delta, Group, Named, OpenFor, Requires,
};
use device_ota_domain::device::{DeviceKey, Registration};
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::firmware::{Firmware, Format, UploadMetadata};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::statistics::{Ledger, Standing};
use device_ota_domain::update::{
    Action, Aftermath, OfferTerms, Owed, Progress, Times, Update, UpdateState,
};
use device_ota_domain::{CampaignId, UpdateId};
use device_ota_engine::ports::store::{
    Ahead, Aim, ClaimQuery, Claimable, NewDevice, Registered, RollbackTerms, SingleQuery, Store,
    Touch, Tx,
};
use jiff::{SignedDuration, Timestamp};

/// The model of all devices and images, unless a story says otherwise.
pub(crate) const MODEL: &str = "SF-100";

/// Seconds after the stories' beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time near the present")
}

/// The id of device number `n`.
pub(crate) fn name(n: usize) -> String {
    format!("dev-{n:05}")
}

/// A device to register.
pub(crate) fn new_device(id: &str, bucket: u16) -> NewDevice {
    NewDevice {
        registration: Registration {
            device_id: id.parse().expect("a valid id"),
            device_type: Some("smart_frame".into()),
            device_model: MODEL.into(),
            manufacturer: Some("Acme".into()),
            hw_revision: Some("B".into()),
            firmware_version: Some("1.0.0".into()),
            groups: vec![],
            tags: BTreeMap::new(),
            ring: None,
        },
        bucket,
        verifier: format!("$7$1$salt${id}"),
        at: at(0),
    }
}

/// Registers devices and answers their numbers.
pub(crate) async fn register(store: &dyn Store, devices: &[NewDevice]) -> Vec<DeviceKey> {
    let mut tx = store.begin().await.expect("begins");
    let registered = tx.register(devices).await.expect("registers");
    tx.commit().await.expect("commits");
    let key = |answer| match answer {
        Registered::Created(key) => key,
        Registered::Exists => panic!("the device was registered before"),
    };
    registered.into_iter().map(key).collect()
}

/// `count` devices, evenly spread over the wheel, all online; answers their numbers.
pub(crate) async fn fleet(store: &dyn Store, count: usize) -> Vec<DeviceKey> {
    let devices: Vec<NewDevice> = (0..count)
        .map(|n| {
            new_device(
                &name(n),
                u16::try_from(n * 10_000 / count).expect("a bucket"),
            )
        })
        .collect();
    let keys = register(store, &devices).await;
    online(store, &keys).await;
    keys
}

/// Shows devices as connected.
pub(crate) async fn online(store: &dyn Store, keys: &[DeviceKey]) {
    let touches: Vec<Touch> = keys.iter().map(|key| online_touch(*key)).collect();
    touch(store, &touches).await;
}

/// A device connects.
pub(crate) fn online_touch(device: DeviceKey) -> Touch {
    Touch {
        device,
        online: Some((true, 1)),
        last_seen: Some(at(1)),
        ..Touch::default()
    }
}

/// Applies touches in a transaction of their own.
pub(crate) async fn touch(store: &dyn Store, touches: &[Touch]) {
    let mut tx = store.begin().await.expect("begins");
    tx.touch(touches).await.expect("touches");
    tx.commit().await.expect("commits");
}

/// An image of `version`.
pub(crate) fn image(name: &str, version: &str, seconds: i64) -> Firmware {
    let metadata = UploadMetadata {
        name: name.into(),
        version: version.into(),
        device_model: MODEL.into(),
        manufacturer: "Acme".into(),
        description: Some("with \"quotes\" and ünïcode".into()),
        is_beta: false,
        is_security_update: false,
        security_version: 3,
        hw_revisions: vec![],
        min_battery_percent: Some(20),
        min_free_storage_bytes: None,
        release_notes: None,
        checksum_md5: Some("0".repeat(32)),
        checksum_sha256: Some("1".repeat(64)),
    };
    Firmware {
        id: metadata.firmware_id(),
        metadata,
        format: Format::TarGz,
        size: 12_345_678,
        sha256: format!("{:0>64}", version.replace('.', "")),
        md5: "0".repeat(32),
        release: "{}".into(),
        release_sha256: "2".repeat(64),
        download_count: 0,
        results: device_ota_domain::firmware::Results::default(),
        storage: device_ota_domain::firmware::Storage::Local,
        deprecated_at: None,
        created_at: at(seconds),
        updated_at: at(seconds),
        created_by: "admin".into(),
    }
}

/// Stores an image.
pub(crate) async fn upload(store: &dyn Store, firmware: &Firmware) {
    let mut tx = store.begin().await.expect("begins");
    tx.insert_firmware(firmware).await.expect("is new");
    tx.commit().await.expect("commits");
}

/// A campaign for `firmware` from a draft's JSON members beside name and firmware.
pub(crate) fn campaign(n: u8, firmware: &Firmware, draft: &str) -> Campaign {
    campaign_naming(n, firmware, draft).0
}

/// The same, and whom it names.
pub(crate) fn campaign_naming(n: u8, firmware: &Firmware, draft: &str) -> (Campaign, Named) {
    let comma = if draft.is_empty() { "" } else { "," };
    let json = format!(
        r#"{{"name":"c{n}","firmware_id":"{}"{comma}{draft}}}"#,
        firmware.id
    );
    let draft: CampaignDraft = serde_json::from_str(&json).expect("a valid draft");
    let named = draft.named();
    let campaign = Campaign {
        id: CampaignId::from_entropy([n; 8]),
        spec: draft
            .into_spec(10.0, 0, device_ota_domain::ring::Shares::default())
            .expect("a valid spec"),
        state: CampaignState::Created,
        approval: Approval::NotRequired,
        target_count: 0,
        revision: 0,
        created_at: at(i64::from(n)),
        updated_at: at(i64::from(n)),
        created_by: "admin".into(),
        next_offer_at: None,
        readings: Vec::new(),
        deleted_at: None,
    };
    (campaign, named)
}

/// How many devices a campaign that names none would mean if it started now.
pub(crate) async fn count_targets(
    store: &dyn Store,
    campaign: &Campaign,
    firmware: &Firmware,
) -> u64 {
    let aim = Aim {
        spec: &campaign.spec,
        named: &Named::default(),
        firmware,
        now: at(2),
    };
    store.target_summary(aim).await.expect("counts").total()
}

/// Stores a campaign, starts it and makes its updates; answers it as stored.
pub(crate) async fn start(store: &dyn Store, campaign: Campaign, firmware: &Firmware) -> Campaign {
    start_naming(store, (campaign, Named::default()), firmware).await
}

/// The same of one that names devices.
pub(crate) async fn start_naming(
    store: &dyn Store,
    (mut campaign, named): (Campaign, Named),
    firmware: &Firmware,
) -> Campaign {
    let mut tx = store.begin().await.expect("begins");
    tx.insert_campaign(&campaign).await.expect("is new");
    tx.save_named(&campaign.id, &named).await.expect("saves");
    campaign.state = campaign.state.start(at(2), at(2)).expect("starts");
    campaign.target_count = tx
        .make_updates(&campaign, firmware, at(2))
        .await
        .expect("makes updates");
    tx.save_campaign(&campaign).await.expect("saves");
    tx.commit().await.expect("commits");
    store
        .campaign(&campaign.id)
        .await
        .expect("reads")
        .expect("is there")
}

/// A claim of everything that is due at `now`.
pub(crate) fn all_due(campaign: &Campaign, now: Timestamp) -> ClaimQuery {
    ClaimQuery {
        campaign: campaign.id.clone(),
        action: Action::Update,
        up_to_stage: u16::MAX,
        limit: 100_000,
        here: None,
        now,
        requires: Requires::default(),
        hold: false,
        open_for: OpenFor::All,
        offers: true,
        busy: Vec::new(),
        ahead: Ahead::default(),
    }
}

/// Claims and offers, as the dispatcher does; answers the updates in flight.
pub(crate) async fn claim(store: &dyn Store, query: &ClaimQuery) -> Vec<Update> {
    let mut tx = store.begin().await.expect("begins");
    let claimed = claim_in(tx.as_mut(), query).await;
    tx.commit().await.expect("commits");
    claimed
}

/// What a claim would find. Its locks are gone with it: those of a transaction that is dropped go some time later.
pub(crate) async fn claimable(store: &dyn Store, query: &ClaimQuery) -> Vec<Claimable> {
    let mut tx = store.begin().await.expect("begins");
    let found = tx.claimable(query).await.expect("claims");
    tx.commit().await.expect("commits");
    found
}

/// The same inside a transaction.
pub(crate) async fn claim_in(tx: &mut dyn Tx, query: &ClaimQuery) -> Vec<Update> {
    let found = tx.claimable(query).await.expect("claims");
    offer(tx, found, query.now, query.hold).await
}

/// The same of updates of single devices.
pub(crate) async fn claim_singles(store: &dyn Store, now: Timestamp, limit: u32) -> Vec<Update> {
    let mut tx = store.begin().await.expect("begins");
    let query = SingleQuery {
        action: Action::Update,
        now,
        limit,
        here: None,
        busy: Vec::new(),
        ahead: Ahead::default(),
    };
    let found = tx.claimable_singles(&query).await;
    let claimed = offer(tx.as_mut(), found.expect("claims"), now, false).await;
    tx.commit().await.expect("commits");
    claimed
}

async fn offer(
    tx: &mut dyn Tx,
    claimable: Vec<Claimable>,
    now: Timestamp,
    hold: bool,
) -> Vec<Update> {
    let (mut displaced, mut offered) = (Vec::new(), Vec::new());
    for found in claimable {
        if let Some(held) = found.displaces {
            let before = held.standing();
            displaced.push((before, held.displace(now).expect("was staged")));
        }
        let before = found.update.standing();
        let terms = OfferTerms {
            now,
            lease: SignedDuration::from_secs(60),
            running: found.running,
            hold,
        };
        let claimed = match found.update.owed() {
            Some(Owed::Activation) => found.update.activate(now, terms.lease),
            _ => found.update.offer(&terms),
        };
        offered.push((before, claimed.expect("waited")));
    }
    save(tx, &displaced).await;
    save(tx, &offered).await;
    offered.into_iter().map(|(_, update)| update).collect()
}

/// Writes updates, each with where it stood, and moves the counters of their campaigns and the figures.
pub(crate) async fn save(tx: &mut dyn Tx, updates: &[(Standing, Update)]) {
    let rows: Vec<Update> = updates.iter().map(|(_, update)| update.clone()).collect();
    tx.save_updates(&rows).await.expect("saves");
    let mut ledger = Ledger::default();
    let mut deltas: BTreeMap<Delta, u64> = BTreeMap::new();
    for (before, update) in updates {
        ledger.moved(before, update);
        if let Some(delta) = delta(update, before.group) {
            *deltas.entry(delta).or_default() += 1;
        }
    }
    let deltas: Vec<(Delta, u64)> = deltas.into_iter().collect();
    tx.add_counts(&deltas).await.expect("counts");
    tx.count(ledger);
}

/// The move of one update from the group `from` to its own.
pub(crate) fn delta(update: &Update, from: Group) -> Option<Delta> {
    Some(Delta {
        campaign: update.campaign.clone()?,
        action: update.action,
        stage: update.stage,
        from: Some(from),
        to: update.group(),
        regressed: update.regression().map(|regression| regression.at),
    })
}

/// Ends updates as completed.
pub(crate) async fn complete(store: &dyn Store, updates: &[Update]) {
    let mut tx = store.begin().await.expect("begins");
    let done: Vec<(Standing, Update)> = updates
        .iter()
        .cloned()
        .map(|update| {
            let before = update.standing();
            let state = UpdateState::Completed { at: at(50) };
            (before, Update { state, ..update })
        })
        .collect();
    save(tx.as_mut(), &done).await;
    tx.commit().await.expect("commits");
}

/// A pending update of one device, outside of campaigns.
pub(crate) fn single(n: u8, device: DeviceKey, device_id: &str, to_version: &str) -> Update {
    Update {
        id: UpdateId::from_entropy([n; 8]),
        device,
        device_id: device_id.parse().expect("a valid id"),
        device_type: Some("smart_frame".into()),
        campaign: None,
        action: Action::Update,
        firmware: None,
        from_version: Some("1.0.0".into()),
        to_version: to_version.into(),
        stage: 0,
        priority: device_ota_domain::campaign::Priority::High,
        attempt: 0,
        last_seq: 0,
        retries: 0,
        max_retries: 3,
        times: Times::default(),
        give_up_at: None,
        timeout_seconds: 600,
        progress: Progress::default(),
        state: UpdateState::Pending {
            due_at: at(2),
            lost_at: None,
            last_failure: None,
        },
        aftermath: Aftermath::default(),
        started_at: None,
        created_at: at(2),
        updated_at: at(2),
    }
}

/// Stores updates outside of campaigns.
pub(crate) async fn insert(store: &dyn Store, updates: &[Update]) {
    let mut tx = store.begin().await.expect("begins");
    for update in updates {
        tx.insert_update(update, None).await.expect("is new");
    }
    tx.commit().await.expect("commits");
}

/// An event.
pub(crate) fn event(n: i64, entity: &str) -> Event {
    Event {
        event_type: EventType::CampaignStarted,
        entity: entity.into(),
        data: serde_json::json!({ "n": n }),
        at: at(n),
    }
}

/// The terms of rollbacks that are made at second `now` and have a thousand seconds.
pub(crate) fn rollback_terms(
    trigger: RollbackTrigger,
    reason: &str,
    now: i64,
) -> RollbackTerms<'_> {
    RollbackTerms {
        trigger,
        reason,
        at: at(now),
        give_up_at: at(now + 1_000),
    }
}
