//! What the criteria of a campaign's health look at, and what they have found.

use device_ota_domain::campaign::Reading;
use device_ota_domain::update::{
    Failure, Report, Reported, Retry, Sight, Update, UpdateState, WatchTerms,
};
use device_ota_engine::ports::store::Store;
use device_ota_engine::ports::telemetry::SampledDevice;

use crate::fixture::*;

crate::stories!(
    the_sample_is_of_those_that_are_watched_and_those_that_wait,
    readings_are_kept_apart_from_the_revision
);

async fn the_sample_is_of_those_that_are_watched_and_those_that_wait(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, 6).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let mut query = all_due(&campaign, at(5));
    query.limit = 3;
    let claimed = claim(store, &query).await;
    let mut tx = store.begin().await.unwrap();
    let done = claimed.into_iter().zip(50..).map(|(update, second)| {
        let before = update.standing();
        let state = UpdateState::Completed { at: at(second) };
        let terms = WatchTerms {
            seconds: 600,
            silent_seconds: None,
            max_restarts: 5,
        };
        let mut done = Update { state, ..update }.watched(terms);
        if second == 50 {
            let back = Sight {
                running: "1.0.0",
                restarted: false,
                nonce: None,
                at: at(55),
            };
            done = done.observe_afterwards(&back).unwrap();
        }
        (before, done)
    });
    save(tx.as_mut(), &done.collect::<Vec<_>>()).await;
    tx.commit().await.unwrap();
    // The next one puts it off.
    query.limit = 1;
    let offered = claim(store, &query).await.remove(0);
    let before = offered.standing();
    let failure = Failure::new("user_deferred", "", Retry::Backoff);
    let report = Report {
        attempt: 1,
        seq: 1,
        version: None,
        percent: None,
        bytes_done: None,
        speed_bps: None,
        said: Reported::Deferred {
            failure,
            retry_after_seconds: None,
        },
    };
    let lease = jiff::SignedDuration::from_secs(60);
    let deferred = offered.report(&report, at(6), lease).into_update();
    let mut tx = store.begin().await.unwrap();
    save(tx.as_mut(), &[(before, deferred)]).await;
    tx.commit().await.unwrap();
    let mut gone = online_touch(keys[5]);
    gone.online = Some((false, 1));
    touch(store, &[gone]).await;

    let all = store.health_sample(&campaign.id, at(0), 9).await.unwrap();
    let sampled = |n: usize| SampledDevice {
        device: keys[n],
        started_at: at(5),
        completed_at: at(50 + i64::try_from(n).unwrap()),
    };
    let mut seen = all.completed.clone();
    seen.sort_by_key(|device| device.completed_at);
    assert_eq!(
        seen,
        [sampled(0), sampled(1), sampled(2)],
        "one has regressed"
    );
    assert_eq!(
        all.waiting,
        [keys[4]],
        "who is away tells nothing, and who has put it off is no device as the others were"
    );
    let some = store.health_sample(&campaign.id, at(50), 1).await.unwrap();
    let later = all
        .completed
        .iter()
        .find(|device| device.completed_at > at(50));
    assert_eq!(some.completed.first(), later, "always the same");
    assert_eq!(some.completed.len(), 1);
}

async fn readings_are_kept_apart_from_the_revision(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 1).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let before = store.campaign(&campaign.id).await.unwrap().unwrap();
    assert_eq!(before.readings, []);
    let reading = Reading {
        criterion: 1,
        base: Some(0.5),
        now: None,
        samples: 7,
        at: at(9),
    };
    let mut tx = store.begin().await.unwrap();
    let readings = [reading];
    tx.save_readings(&campaign.id, &readings).await.unwrap();
    tx.commit().await.unwrap();
    let after = store.campaign(&campaign.id).await.unwrap().unwrap();
    assert_eq!(after.readings, readings);
    assert_eq!(after.revision, before.revision);
}
