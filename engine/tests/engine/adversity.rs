//! Devices, networks, clocks and outages at their worst: each test says what must hold all the same.

use std::sync::Arc;

use device_ota_domain::update::Action;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_protocol::objects::Action as WireAction;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE};

const SECOND: SignedDuration = SignedDuration::from_secs(1);

impl Fixture {
    /// Opens a session and checks, both in one batch.
    async fn came(&self, device: &DeviceRef, session: i64, version: &str) {
        let online = self.submit(device, Uplink::Online { session }).await;
        let check = format!(r#"{{"version":"{version}","nonce":"n2","reason":"boot"}}"#);
        self.publish(device, Up::Check, &check).await;
        online.wait().await;
    }
    async fn went(&self, device: &DeviceRef, session: i64) {
        self.submit(device, Uplink::Offline { session })
            .await
            .wait()
            .await;
    }
    async fn state_of(&self, campaign: &device_ota_domain::CampaignId) -> &'static str {
        self.engine
            .campaign(campaign)
            .await
            .unwrap()
            .campaign
            .state
            .status()
    }
}

/// A device takes the offer, loses its slot while it restarts, and the campaign is rolled back meanwhile.
#[tokio::test]
async fn a_device_that_had_lost_its_slot_when_the_rest_went_back_goes_back_too() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    assert_eq!(fixture.status(&offer.update_id).await, "scheduled");
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", "tester")
        .await
        .unwrap();
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    fixture.came(&device, i64::MAX, "1.1.0").await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    let all = fixture.updates(&campaign).await;
    assert!(
        all.iter().any(|u| u.action == Action::Rollback),
        "it runs 1.1.0 for ever; campaign {}, update {}",
        fixture.state_of(&campaign).await,
        fixture.status(&offer.update_id).await
    );
    fixture.stop().await;
}

/// A device lost its slot while it restarted into the new image; its check comes before its word that it completed.
#[tokio::test]
async fn a_second_attempt_does_not_forget_what_ran_before() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let first = fixture.offer().await;
    fixture.progress(&device, &first, 1, "rebooting", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    fixture.came(&device, i64::MAX, "1.1.0").await;
    let second = fixture.offer().await;
    assert_eq!(second.attempt, 2);
    fixture
        .progress(&device, &first, 2, "completed", r#","version":"1.1.0""#)
        .await;
    // What the agent answers to the second attempt: it runs already.
    fixture
        .progress(&device, &second, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", "tester")
        .await
        .unwrap();
    let back = fixture.offer().await;
    assert_eq!(back.action, WireAction::Rollback);
    let rows = fixture.updates(&campaign).await;
    let back = rows.iter().find(|u| u.action == Action::Rollback).unwrap();
    assert_eq!(back.to_version, "1.0.0");
    fixture.stop().await;
}

/// The service was away for longer than the attempt's time; the devices did their work meanwhile.
#[tokio::test]
async fn an_outage_of_the_service_is_no_failure_of_the_devices() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "accepted", "").await;
    fixture.advance(SignedDuration::from_hours(2)); // stopped, suspended, or its clock was set
    fixture.engine.reset_presence().await.unwrap();
    fixture.engine.keep_time().await.unwrap(); // the first tick after the start
    fixture.engine.dispatch_all().await.unwrap();
    fixture.came(&device, i64::MAX, "1.1.0").await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert_eq!(
        (
            fixture.status(&offer.update_id).await,
            fixture.state_of(&campaign).await
        ),
        ("completed", "completed")
    );
    fixture.stop().await;
}

/// One hostile device that always says "not now, ask me in 0 seconds".
#[tokio::test]
async fn a_device_that_defers_for_no_time_is_not_offered_at_once_for_ever() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let mut offer = fixture.offer().await;
    for _ in 0..50 {
        let more = r#","retry_after_s":0,"error":{"code":"user_deferred"}"#;
        fixture.progress(&device, &offer, 1, "deferred", more).await;
        fixture.engine.dispatch_all().await.unwrap();
        offer.attempt = fixture.updates(&campaign).await[0].attempt;
    }
    assert!(
        offer.attempt < 3,
        "{} attempts within no time at all",
        offer.attempt
    );
    fixture.stop().await;
}

/// `Reconnect` says that the connection is new, not that the device restarted.
#[tokio::test]
async fn a_new_connection_before_the_restart_is_no_fallback() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    let check = r#"{"version":"1.0.0","nonce":"n2","reason":"reconnect"}"#;
    fixture.publish(&device, Up::Check, check).await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "completed");
    fixture.stop().await;
}

/// The offer never reached the device; the agent has nothing to say to a cancel of what it does not know.
#[tokio::test]
async fn a_cancel_of_an_offer_that_was_never_taken_ends_before_the_attempts_time() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .engine
        .cancel_campaign(&campaign, "tester")
        .await
        .unwrap();
    fixture.command().await;
    for _ in 0..55 {
        fixture.advance(SignedDuration::from_mins(1));
        fixture
            .publish(&device, Up::Heartbeat, r#"{"version":"1.0.0"}"#)
            .await;
        fixture.engine.keep_time().await.unwrap();
    }
    let after_55 = fixture.status(&offer.update_id).await;
    for _ in 0..10 {
        fixture.advance(SignedDuration::from_mins(1));
        fixture
            .publish(&device, Up::Heartbeat, r#"{"version":"1.0.0"}"#)
            .await;
        fixture.engine.keep_time().await.unwrap();
    }
    assert_eq!(
        (after_55, fixture.status(&offer.update_id).await),
        ("cancelled", "cancelled")
    );
    fixture.stop().await;
}

/// The only slot is held by a device that fell silent before it saw its cancel.
#[tokio::test]
async fn a_silent_device_does_not_hold_up_the_rollback_of_the_others() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let (good, silent) = (fixture.device("d1").await, fixture.device("d2").await);
    fixture.online(&good).await;
    fixture.online(&silent).await;
    let campaign = fixture
        .campaign("1.1.0", r#","max_concurrent_updates":1"#)
        .await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), "d1");
    fixture
        .progress(&good, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    let offer = fixture.offer().await;
    fixture.progress(&silent, &offer, 1, "verifying", "").await;
    fixture.went(&silent, i64::MAX).await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", "tester")
        .await
        .unwrap();
    fixture.command().await; // which nobody hears
    fixture.pass(LEASE + SECOND).await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert!(
        !fixture.nothing_sent(),
        "nothing goes back before d2's time is over"
    );
    fixture.stop().await;
}

/// A second attempt is on its way when the device says that the first has succeeded; then all is withdrawn.
#[tokio::test]
async fn a_success_of_an_earlier_attempt_is_a_success() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let first = fixture.offer().await;
    fixture.progress(&device, &first, 1, "installing", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    fixture.came(&device, i64::MAX, "1.0.0").await;
    assert_eq!(fixture.offer().await.attempt, 2); // the device is busy installing, and does not answer
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", "tester")
        .await
        .unwrap();
    fixture.command().await; // nor to this
    fixture
        .progress(&device, &first, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert_eq!(fixture.status(&first.update_id).await, "completed");
    assert_eq!(fixture.offer().await.action, WireAction::Rollback);
    fixture.stop().await;
}

/// Campaign A brought 1.1.0, campaign B then 1.2.0; A is taken back.
#[tokio::test]
async fn a_rollback_leaves_alone_who_has_moved_on() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let first = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    fixture.campaign("1.2.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.2.0""#)
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    fixture
        .engine
        .roll_back_campaign(&first, "bad", "tester")
        .await
        .unwrap();
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert!(
        fixture.nothing_sent(),
        "a device on 1.2.0 was sent back to 1.0.0 by the campaign for 1.1.0"
    );
    fixture.stop().await;
}

/// The clock was ahead and was put right, and the service started anew.
#[tokio::test]
async fn a_device_is_online_also_after_the_clock_was_put_back() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    fixture.advance(SignedDuration::from_hours(-24));
    fixture.engine.reset_presence().await.unwrap();
    fixture.online(&device).await;
    assert!(
        fixture
            .engine
            .device(&device.id)
            .await
            .unwrap()
            .latest
            .online
    );
    fixture.stop().await;
}

mod postgres {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use device_ota_domain::{
        DeviceId,
        campaign::{Delta, Group},
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
                .register_devices(vec![serde_json::from_str(&json).unwrap()])
                .await
                .unwrap();
            let RegistrationOutcome::Created { secret } = &made[0].outcome else {
                panic!()
            };
            devices.push(
                engine
                    .authenticate(id, secret.as_bytes())
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
            .finish(serde_json::from_str(metadata).unwrap(), None, "t")
            .await
            .unwrap();
        let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) = made;
        let draft = format!(
            r#"{{"name":"c","firmware_id":"{}","deployment_strategy":"immediate","max_concurrent_updates":2}}"#,
            firmware.id
        );
        let campaign = engine
            .create_campaign(serde_json::from_str(&draft).unwrap(), "t")
            .await
            .unwrap()
            .campaign
            .id;
        engine.start_campaign(&campaign, "t").await.unwrap();
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
            stop.cancel_pending(&campaign, Still.now()).await.unwrap(),
            1
        );
        let delta = Delta {
            campaign: campaign.clone(),
            action: Action::Update,
            stage: 0,
            from: Some(Group::InFlight),
            to: Group::Completed,
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
                let done = stop.cancellable(&campaign, 10).await;
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
}
