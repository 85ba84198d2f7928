//! The registry of images.

use device_ota_domain::firmware::{Firmware, FirmwareFilter};
use device_ota_domain::page::Page;
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::Store;

use crate::fixture::*;

crate::stories!(
    an_image_reads_back_as_it_was_stored,
    the_same_id_again_is_a_conflict,
    images_are_listed_newest_first_and_filtered,
    a_version_is_found_even_when_deprecated,
    downloads_add_up,
);

async fn an_image_reads_back_as_it_was_stored(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 5);
    upload(store, &firmware).await;
    assert_eq!(
        store.firmware(&firmware.id).await.unwrap(),
        Some(firmware.clone())
    );
    assert!(store.object_is_used(&firmware.sha256).await.unwrap());
    assert!(!store.object_is_used("other").await.unwrap());
}

async fn the_same_id_again_is_a_conflict(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 5);
    upload(store, &firmware).await;
    let mut tx = store.begin().await.unwrap();
    let refused = tx.insert_firmware(&firmware).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict("the firmware"))),
        "{refused:?}"
    );
}

async fn images_are_listed_newest_first_and_filtered(store: &dyn Store) {
    let plain = image("frame", "1.0.0", 1);
    let mut beta = image("frame", "2.0.0", 2);
    beta.metadata.is_beta = true;
    let mut urgent = image("frame", "3.0.0", 3);
    urgent.metadata.is_security_update = true;
    urgent.metadata.manufacturer = "Other".into();
    let mut gone = image("frame", "4.0.0", 4);
    gone.deprecated_at = Some(at(9));
    for firmware in [&plain, &beta, &urgent, &gone] {
        upload(store, firmware).await;
    }
    let list = async |filter: FirmwareFilter, page: Page| {
        let found = store.firmware_list(&filter, page).await.unwrap();
        found
            .into_iter()
            .map(|f: Firmware| f.metadata.version)
            .collect::<Vec<_>>()
    };
    let all = FirmwareFilter::default();
    assert_eq!(
        list(all.clone(), Page::default()).await,
        ["3.0.0", "2.0.0", "1.0.0"]
    );
    assert_eq!(list(all.clone(), Page::new(1, 1).unwrap()).await, ["2.0.0"]);
    assert_eq!(
        list(
            FirmwareFilter {
                is_beta: Some(true),
                ..all.clone()
            },
            Page::default()
        )
        .await,
        ["2.0.0"]
    );
    assert_eq!(
        list(
            FirmwareFilter {
                is_beta: Some(false),
                ..all.clone()
            },
            Page::default()
        )
        .await,
        ["3.0.0", "1.0.0"]
    );
    assert_eq!(
        list(
            FirmwareFilter {
                is_security_update: Some(true),
                ..all.clone()
            },
            Page::default()
        )
        .await,
        ["3.0.0"]
    );
    assert_eq!(
        list(
            FirmwareFilter {
                manufacturer: Some("Other".into()),
                ..all.clone()
            },
            Page::default()
        )
        .await,
        ["3.0.0"]
    );
    assert!(
        list(
            FirmwareFilter {
                device_model: Some("X".into()),
                ..all
            },
            Page::default()
        )
        .await
        .is_empty()
    );
}

async fn a_version_is_found_even_when_deprecated(store: &dyn Store) {
    let mut old = image("frame", "1.0.0", 1);
    old.deprecated_at = Some(at(2));
    upload(store, &old).await;
    let found = store.firmware_of_version(MODEL, "1.0.0").await.unwrap();
    assert_eq!(found, Some(old));
    assert_eq!(store.firmware_of_version("X", "1.0.0").await.unwrap(), None);
}

async fn downloads_add_up(store: &dyn Store) {
    let firmware = image("frame", "1.0.0", 1);
    upload(store, &firmware).await;
    let mut tx = store.begin().await.unwrap();
    tx.count_downloads(&firmware.id, 3).await.unwrap();
    tx.count_downloads(&firmware.id, 4).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        store
            .firmware(&firmware.id)
            .await
            .unwrap()
            .unwrap()
            .download_count,
        7
    );
}
