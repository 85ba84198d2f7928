//! Who is let in by what is kept at hand: whoever the database would let in, and nobody else for long.

use device_ota_domain::DeviceId;
use device_ota_engine::ports::Entropy;
use device_ota_engine::{RegistrationOutcome, Settings, secrets};
use futures_util::FutureExt as _;
use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

struct Fixed;

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(5);
    }
}

/// A registered device and its secret, nothing of which is kept yet.
async fn register(fixture: &Fixture, id: &str) -> (DeviceId, String) {
    let json = format!(r#"{{"device_id":"{id}","device_model":"M"}}"#);
    let registration = serde_json::from_str(&json).unwrap();
    let mut made = fixture
        .engine
        .register_devices(vec![registration], &tester())
        .await
        .unwrap();
    let made = made.remove(0);
    match made.outcome {
        RegistrationOutcome::Created { secret } => (made.device_id, secret),
        RegistrationOutcome::Exists => panic!("{id} exists"),
    }
}

impl Fixture {
    async fn lets_in(&self, id: &DeviceId, secret: &str) -> bool {
        let device = self.engine.authenticate(id, secret.as_bytes()).await;
        device.unwrap().is_some()
    }

    /// By what is kept alone.
    fn recognises(&self, id: &DeviceId, secret: &str) -> bool {
        self.engine.recognise(id, secret.as_bytes()).is_some()
    }

    /// Another process replaces a device's secret.
    async fn replaced_elsewhere(&self, id: &DeviceId, secret: &str) {
        let mut tx = self.store.begin().await.unwrap();
        let verifier = secrets::verifier(secret, &Fixed);
        assert!(
            tx.set_verifier(id, &verifier, self.engine.clock().now())
                .await
                .unwrap()
        );
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_new_secret_works_at_once_and_the_old_one_no_more() {
    let fixture = Fixture::new().await;
    let (id, old) = register(&fixture, "d1").await;
    assert!(fixture.lets_in(&id, &old).await);
    assert!(fixture.recognises(&id, &old), "it is kept");
    let before = fixture.engine.revocations();
    let new = fixture
        .engine
        .new_credentials(&id, &tester())
        .await
        .unwrap();
    assert!(!fixture.recognises(&id, &old));
    assert!(!fixture.lets_in(&id, &old).await);
    assert!(fixture.lets_in(&id, &new).await);
    assert!(!fixture.recognises(&id, &old));
    assert!(fixture.recognises(&id, &new));
    assert!(
        fixture.engine.revocations() > before,
        "whoever was let in meanwhile hears of it"
    );
}

#[tokio::test]
async fn a_wrong_secret_is_never_let_in() {
    let fixture = Fixture::new().await;
    let (id, secret) = register(&fixture, "d1").await;
    let (other, _) = register(&fixture, "d2").await;
    for _ in 0..2 {
        for wrong in ["", "no", &secret.to_uppercase()] {
            assert!(!fixture.lets_in(&id, wrong).await, "{wrong:?}");
        }
        assert!(!fixture.lets_in(&other, &secret).await);
        assert!(fixture.lets_in(&id, &secret).await, "and now it is kept");
    }
}

#[tokio::test]
async fn what_another_process_takes_back_is_believed_for_seconds_alone() {
    let fixture = Fixture::new().await;
    let (id, old) = register(&fixture, "d1").await;
    assert!(fixture.lets_in(&id, &old).await);
    fixture.replaced_elsewhere(&id, "new").await;
    assert!(fixture.lets_in(&id, "new").await, "at once");
    assert!(
        !fixture.lets_in(&id, &old).await,
        "the new one has been seen"
    );

    fixture.replaced_elsewhere(&id, "newer").await;
    let believed = Settings::default().credentials_believed.unwrap();
    fixture.advance(believed - SignedDuration::from_micros(1));
    assert!(fixture.recognises(&id, "new"), "nobody has told us");
    fixture.advance(SignedDuration::from_micros(1));
    assert!(!fixture.lets_in(&id, "new").await);
    assert!(fixture.lets_in(&id, "newer").await);
    fixture.advance(-SignedDuration::from_hours(1));
    assert!(
        !fixture.recognises(&id, "newer"),
        "a clock that is set back makes nothing last longer"
    );
}

#[tokio::test]
async fn a_wrong_secret_too_shows_that_another_process_took_one_back() {
    let fixture = Fixture::new().await;
    let (id, old) = register(&fixture, "d1").await;
    assert!(fixture.lets_in(&id, &old).await);
    fixture.replaced_elsewhere(&id, "new").await;
    assert!(!fixture.lets_in(&id, "guess").await);
    assert!(!fixture.lets_in(&id, &old).await);
}

#[tokio::test]
async fn an_unknown_device_is_let_in_as_soon_as_it_is_registered() {
    let fixture = Fixture::new().await;
    assert!(!fixture.lets_in(&"d1".parse().unwrap(), "any").await);
    let (id, secret) = register(&fixture, "d1").await;
    assert!(fixture.lets_in(&id, &secret).await);
}

#[tokio::test]
async fn a_whole_fleet_is_read_ahead() {
    let fixture = Fixture::new().await;
    let mut fleet = Vec::new();
    for number in 0..5 {
        fleet.push(register(&fixture, &format!("d{number}")).await);
    }
    let known = |(id, secret): &(DeviceId, String)| fixture.recognises(id, secret);
    assert!(!fleet.iter().any(known));
    fixture.engine.read_credentials_ahead().await.unwrap();
    assert!(fleet.iter().all(known));
    assert!(!fixture.recognises(&"d9".parse().unwrap(), "any"));
    assert!(!fixture.recognises(&fleet[0].0, &fleet[1].1));
}

/// A client that hangs up drops its request wherever it is just then. Whenever that is: a secret that was replaced is
/// forgotten, and the session that it had opened is ended.
#[tokio::test]
async fn whoever_hangs_up_leaves_no_session_with_a_secret_that_is_gone() {
    let mut fixture = Fixture::new().await;
    let (id, mut secret) = register(&fixture, "d1").await;
    let (mut unheard, mut kept) = (0, 0);
    for polls in 0..200 {
        assert!(fixture.lets_in(&id, &secret).await);
        let by = tester();
        let mut request = Box::pin(fixture.engine.new_credentials(&id, &by));
        let mut answer = None;
        for _ in 0..polls {
            if let Some(made) = request.as_mut().now_or_never() {
                answer = Some(made.unwrap());
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(request);
        let answered = answer.is_some();
        // Behind whatever the writer still does for a request that nobody waits for.
        fixture.store.begin().await.unwrap().commit().await.unwrap();
        if fixture.lets_in(&id, &secret).await {
            assert!(!answered);
            kept += 1;
        } else {
            assert!(!fixture.recognises(&id, &secret));
            assert_eq!(fixture.disconnected.recv().await, Some(id.clone()));
            unheard += i32::from(!answered);
            secret = match answer {
                Some(new) => new,
                None => fixture
                    .engine
                    .new_credentials(&id, &tester())
                    .await
                    .unwrap(),
            };
        }
        while fixture.disconnected.try_recv().is_ok() {}
        if answered {
            break;
        }
    }
    assert!(kept > 0 && unheard > 0, "{kept} {unheard}");
}
