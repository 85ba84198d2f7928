//! The rings as settings.

use device_ota_domain::ring::{Ring, RingSettings, Shares};
use device_ota_engine::ports::store::Store;

use crate::fixture::at;

crate::stories!(shares_are_the_documents_until_they_are_set);

async fn shares_are_the_documents_until_they_are_set(store: &dyn Store) {
    let settings = store.rings().await.unwrap();
    assert_eq!(settings, RingSettings::default());
    let ends = Ring::ALL.map(|ring| settings.shares.end_bucket(ring));
    assert_eq!(ends, [500, 2_500, 7_500, 10_000]);
    for (percents, now) in [
        ([0.01, 10.0, 50.5, 100.0], 5),
        ([20.0, 30.0, 40.0, 100.0], 6),
    ] {
        let set = RingSettings {
            shares: Shares::of_percents(percents).unwrap(),
            revision: now,
            updated_at: Some(at(now)),
            updated_by: Some("admin".into()),
        };
        let mut tx = store.begin().await.unwrap();
        tx.save_rings(&set).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.rings().await.unwrap(), set);
    }
}
