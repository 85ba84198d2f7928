//! What PostgreSQL alone can do to a service: values it refuses, locks that meet.

use super::*;
use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::{
    DeviceId,
    campaign::{Delta, Group},
    update::Action,
};
use device_ota_engine::inbound::{Ack, AckSink, Inbound};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::{Clock, Delivery, Downlink, Entropy, Store};
use device_ota_engine::{Engine, Grants, Parts, RegistrationOutcome, Settings, Uploaded};
use device_ota_objects::LocalFolder;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{Root, seal};
use device_ota_protocol::topics::Down;
use device_ota_store::testing::PostgresDatabase;
use jiff::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

struct Still;
impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }
}
struct Counting(AtomicU64);
impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.0.fetch_add(7, Ordering::SeqCst).to_le_bytes()[0];
        }
    }
}
struct Nowhere;
#[async_trait]
impl Downlink for Nowhere {
    async fn send(&self, _: &DeviceId, _: &Down, _: Bytes) -> Delivery {
        Delivery::Queued
    }
    async fn disconnect(&self, _: &DeviceId) {}
}
struct Told(tokio::sync::mpsc::UnboundedSender<u64>);
impl AckSink for Told {
    fn committed(&self, token: u64) {
        self.0.send(token).ok();
    }
}

struct Rig {
    engine: Arc<Engine>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    devices: Vec<DeviceRef>,
    campaign: device_ota_domain::CampaignId,
    _folder: tempfile::TempDir,
    _database: PostgresDatabase,
}

/// Two devices that hold a slot and one that waits for it.
async fn rig() -> Rig {
    let database = PostgresDatabase::create().await;
    let store: Arc<dyn Store> = Arc::new(database.open().await);
    let folder = tempfile::tempdir().unwrap();
    let [root_key, release, dispatch] = [[1; 32], [2; 32], [3; 32]].map(Keypair::from_seed);
    let root = Root::single(
        1,
        "2046-01-01T00:00:00Z".parse().unwrap(),
        root_key.public(),
        release.public(),
        dispatch.public(),
    );
    let (engine, work) = Engine::new(Parts {
        store: store.clone(),
        objects: Arc::new(LocalFolder::open(folder.path()).unwrap()),
        downlink: Arc::new(Nowhere),
        sinks: Vec::new(),
        device_service: None,
        clock: Arc::new(Still),
        entropy: Arc::new(Counting(AtomicU64::new(1))),
        keyring: Keyring::new(
            vec![seal(&root, &root_key).unwrap()],
            Some(release),
            dispatch,
        )
        .unwrap(),
        grants: Grants::new([9; 32]),
        settings: Settings {
            tick: std::time::Duration::from_hours(1),
            ..Settings::default()
        },
    });
    let stop = CancellationToken::new();
    tokio::spawn(engine.clone().run(work, stop.clone()));
    let mut devices = Vec::new();
    for id in ["d1", "d2", "d3"] {
        let json =
            format!(r#"{{"device_id":"{id}","device_model":"M","firmware_version":"1.0.0"}}"#);
        let made = engine
            .register_devices(vec![serde_json::from_str(&json).unwrap()], &tester())
            .await
            .unwrap();
        let RegistrationOutcome::Created { secret } = &made[0].outcome else {
            panic!()
        };
        devices.push(
            engine
                .authenticate(&id.parse().unwrap(), secret.as_bytes())
                .await
                .unwrap()
                .unwrap(),
        );
    }
    for device in &devices {
        say(&engine, device, Uplink::Online { session: 1 })
            .await
            .recv()
            .await
            .unwrap();
    }
    let mut upload = engine.begin_upload("a.bin").await.unwrap();
    upload.write(Bytes::from_static(b"x")).await.unwrap();
    let metadata = r#"{"name":"I","version":"1.1.0","device_model":"M","manufacturer":"A"}"#;
    let made = upload
        .finish(serde_json::from_str(metadata).unwrap(), None, &tester())
        .await
        .unwrap();
    let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) = made;
    let draft = format!(
        r#"{{"name":"c","firmware_id":"{}","deployment_strategy":"immediate","max_concurrent_updates":2}}"#,
        firmware.id
    );
    let campaign = engine
        .create_campaign(serde_json::from_str(&draft).unwrap(), &tester())
        .await
        .unwrap()
        .campaign
        .id;
    engine.start_campaign(&campaign, &tester()).await.unwrap();
    engine.dispatch_all().await.ok();
    Rig {
        engine,
        store,
        stop,
        devices,
        campaign,
        _folder: folder,
        _database: database,
    }
}

async fn say(
    engine: &Engine,
    device: &DeviceRef,
    uplink: Uplink,
) -> tokio::sync::mpsc::UnboundedReceiver<u64> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let ack = Some(Ack::new(Arc::new(Told(sender)), 1));
    let message = Inbound {
        device: device.clone(),
        at: Still.now(),
        uplink,
        ack,
    };
    engine.uplinks().submit(message).await.unwrap();
    receiver
}

/// One device says why it failed, with a character that PostgreSQL does not store; another's heartbeat follows.
#[tokio::test]
async fn no_report_of_one_device_keeps_those_of_others_out() {
    let rig = rig().await;
    let id = rig
        .store
        .in_flight(rig.devices[0].key)
        .await
        .unwrap()
        .unwrap()
        .id;
    let payload = format!(
        r#"{{"update_id":"{id}","attempt":1,"seq":1,"phase":"failed","error":{{"code":"internal","message":"a\u0000b"}}}}"#
    );
    let poison = say(
        &rig.engine,
        &rig.devices[0],
        crate::fixture::report(Up::Progress, &payload),
    )
    .await;
    tokio::task::yield_now().await;
    let mut acked = say(
        &rig.engine,
        &rig.devices[1],
        crate::fixture::report(Up::Heartbeat, r#"{"version":"1.0.0"}"#),
    )
    .await;
    let told = tokio::time::timeout(std::time::Duration::from_secs(5), acked.recv()).await;
    drop(poison);
    rig.stop.cancel();
    assert!(told.is_ok(), "{:?}", rig.engine.metrics().snapshot());
}

/// What the dispatcher does at a breach (counters, then rows) against what ingest does (rows, then counters).
#[tokio::test]
async fn a_stop_and_a_batch_of_reports_do_not_deadlock() {
    let rig = rig().await;
    let id = rig
        .store
        .in_flight(rig.devices[0].key)
        .await
        .unwrap()
        .unwrap()
        .id;
    let mut ingest = rig.store.begin().await.unwrap();
    ingest.updates(&[id]).await.unwrap();
    let mut stop = rig.store.begin().await.unwrap();
    let campaign = rig.campaign.clone();
    stop.campaign(&campaign).await.unwrap();
    assert_eq!(
        stop.cancel_pending(&campaign, Action::Update, Still.now())
            .await
            .unwrap(),
        1
    );
    let delta = Delta {
        campaign: campaign.clone(),
        action: Action::Update,
        stage: 0,
        from: Some(Group::InFlight),
        to: Group::Completed,
        regressed: None,
    };
    let deltas = [(delta, 1)];
    let (batch, stopped) = tokio::join!(
        async {
            let done = ingest.add_counts(&deltas).await;
            drop(ingest);
            done.map_err(|e| {
                format!(
                    "{e}: {:?}",
                    std::error::Error::source(&e).map(ToString::to_string)
                )
            })
        },
        async {
            let done = stop.cancellable(&campaign, Action::Update, None, 10).await;
            drop(stop);
            done.map(|_| ()).map_err(|e| {
                format!(
                    "{e}: {:?}",
                    std::error::Error::source(&e).map(ToString::to_string)
                )
            })
        },
    );
    rig.stop.cancel();
    assert_eq!((batch, stopped), (Ok(()), Ok(())));
}
