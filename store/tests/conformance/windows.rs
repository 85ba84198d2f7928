//! Maintenance windows: devices are found by the time zone that their tag names.

use std::collections::BTreeSet;

use device_ota_domain::campaign::{Campaign, OpenFor};
use device_ota_engine::ports::store::{ClaimQuery, Store};

use crate::fixture::*;

crate::stories!(only_devices_of_open_time_zones_are_found);

/// A started campaign over devices of these time zones, all online.
async fn running(store: &dyn Store, zones: &[Option<&str>]) -> Campaign {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let devices = zones.iter().zip(0..).map(|(zone, n)| {
        let mut device = new_device(&name(n), u16::try_from(n).unwrap());
        if let Some(zone) = zone {
            let tags = &mut device.registration.tags;
            tags.insert("time_zone".into(), (*zone).to_owned());
        }
        device
    });
    let keys = register(store, &devices.collect::<Vec<_>>()).await;
    online(store, &keys).await;
    start(store, campaign(1, &firmware, ""), &firmware).await
}

async fn only_devices_of_open_time_zones_are_found(store: &dyn Store) {
    let zones = [
        None,
        Some("Europe/Berlin"),
        Some("Asia/Tokyo"),
        Some("it's none"),
    ];
    let campaign = running(store, &zones).await;
    let found = async |hold, open_for| {
        let query = ClaimQuery {
            hold,
            open_for,
            ..all_due(&campaign, at(9))
        };
        let found = claimable(store, &query).await;
        let found = found.into_iter().map(|f| f.update.device_id.to_string());
        found.collect::<BTreeSet<_>>()
    };
    let names = |zones: &[&str]| {
        zones
            .iter()
            .map(|&zone| zone.to_owned())
            .collect::<Vec<_>>()
    };
    let devices = |numbers: &[usize]| numbers.iter().map(|n| name(*n)).collect::<BTreeSet<_>>();
    let tokyo = || names(&["Asia/Tokyo", "Asia/Seoul"]);
    for hold in [true, false] {
        assert_eq!(found(hold, OpenFor::All).await, devices(&[0, 1, 2, 3]));
        assert_eq!(found(hold, OpenFor::Zones(tokyo())).await, devices(&[2]));
        assert_eq!(found(hold, OpenFor::Zones(Vec::new())).await, devices(&[]));
        assert_eq!(
            found(hold, OpenFor::AllBut(tokyo())).await,
            devices(&[0, 1, 3])
        );
        // The same of those that hold it.
        if hold {
            let query = ClaimQuery {
                hold,
                ..all_due(&campaign, at(5))
            };
            let claimed = claim(store, &query).await;
            let mut tx = store.begin().await.unwrap();
            let staged = claimed.into_iter().map(|update| {
                let before = update.standing();
                let state = device_ota_domain::update::UpdateState::Staged { since: at(6) };
                (before, device_ota_domain::Update { state, ..update })
            });
            save(tx.as_mut(), &staged.collect::<Vec<_>>()).await;
            tx.commit().await.unwrap();
        }
    }
}
