//! The registry of images.

use device_ota_domain::firmware::{Firmware, FirmwareFilter, Storage};
use device_ota_domain::page::Page;
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::Store;

use crate::fixture::*;

crate::stories!(
    an_image_reads_back_as_it_was_stored,
    all_images_of_the_same_bytes_are_told_where_they_lie,
    the_same_id_again_is_a_conflict,
    images_are_listed_newest_first_and_filtered,
    a_version_is_found_even_when_deprecated,
    downloads_add_up,
    an_image_out_of_use_leaves_the_lists_and_the_rest_of_it_stays,
    whoever_offers_an_image_is_found,
    the_newest_deployment_of_an_image_is_found,
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

async fn all_images_of_the_same_bytes_are_told_where_they_lie(store: &dyn Store) {
    let (one, other) = (image("frame", "2.0.0", 5), image("frame", "3.0.0", 5));
    let twin = Firmware {
        sha256: one.sha256.clone(),
        ..image("lamp", "2.0.0", 5)
    };
    for firmware in [&one, &twin, &other] {
        upload(store, firmware).await;
    }
    assert!(!store.storage_is_used(Storage::S3).await.unwrap());
    let mut tx = store.begin().await.unwrap();
    tx.set_storage(&one.sha256, Storage::S3).await.unwrap();
    tx.commit().await.unwrap();
    for (firmware, storage) in [
        (one, Storage::S3),
        (twin, Storage::S3),
        (other, Storage::Local),
    ] {
        let moved = Firmware {
            storage,
            ..firmware
        };
        assert_eq!(store.firmware(&moved.id).await.unwrap(), Some(moved));
    }
    for storage in Storage::ALL {
        assert!(store.storage_is_used(storage).await.unwrap());
    }
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

async fn an_image_out_of_use_leaves_the_lists_and_the_rest_of_it_stays(store: &dyn Store) {
    let (first, second) = (image("a", "1.0.0", 1), image("b", "1.0.0", 2));
    upload(store, &first).await;
    upload(store, &second).await;
    let mut changed = second.deprecate(at(9)).unwrap();
    changed.metadata.description = None;
    changed.metadata.is_beta = true;
    let mut tx = store.begin().await.unwrap();
    let locked = tx.firmware(&changed.id).await.unwrap();
    assert!(locked.is_some() && tx.hold_firmware(&first.id).await.unwrap().is_some());
    tx.save_firmware(&changed).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        store.firmware(&changed.id).await.unwrap(),
        Some(changed.clone())
    );
    let list = async |include_deprecated| {
        let filter = FirmwareFilter {
            include_deprecated,
            ..FirmwareFilter::default()
        };
        let found = store.firmware_list(&filter, Page::default()).await.unwrap();
        found.into_iter().map(|f| f.id).collect::<Vec<_>>()
    };
    assert_eq!(list(false).await, std::slice::from_ref(&first.id));
    assert_eq!(list(true).await, [changed.id.clone(), first.id.clone()]);
    // Of one version, the image in use comes first, though it is older.
    let found = store.firmware_of_version(MODEL, "1.0.0").await.unwrap();
    assert_eq!(found.unwrap().id, first.id);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.firmware(&image("c", "9.0.0", 1).id).await.unwrap(), None);
}

async fn whoever_offers_an_image_is_found(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, 4).await;
    let begun = start(store, campaign(1, &firmware, ""), &firmware).await;
    let mut tx = store.begin().await.unwrap();
    tx.insert_campaign(&campaign(2, &firmware, ""))
        .await
        .unwrap();
    let of_image = |n: u8| device_ota_domain::Update {
        firmware: Some(firmware.id.clone()),
        ..single(n, keys[usize::from(n)], &name(n.into()), "2.0.0")
    };
    let other = single(3, keys[3], &name(3), "1.0.0");
    for update in [of_image(0), of_image(1), of_image(2), other] {
        tx.insert_update(&update, None).await.unwrap();
    }
    tx.commit().await.unwrap();
    let flying = claim_singles(store, at(5), 1).await.remove(0);
    let mut tx = store.begin().await.unwrap();
    let offering = tx.campaigns_offering(&firmware.id).await.unwrap();
    assert_eq!(offering.len(), 1, "the other one has not begun");
    assert_eq!(offering[0].id, begun.id);
    assert_eq!(tx.open_singles(&firmware.id, 10).await.unwrap().len(), 3);
    assert_eq!(tx.open_singles(&firmware.id, 2).await.unwrap().len(), 2);
    let found = tx.cancellable_singles(&firmware.id, 10).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].id, flying.id, "what is in flight comes last");
    assert_eq!(
        tx.cancellable_singles(&firmware.id, 2).await.unwrap().len(),
        2
    );
    let asked = flying.cancel(at(6)).unwrap();
    tx.save_updates(&[asked]).await.unwrap();
    let found = tx.cancellable_singles(&firmware.id, 10).await.unwrap();
    assert_eq!(found.len(), 2, "what was asked to stop is not asked again");
    assert_eq!(tx.open_singles(&firmware.id, 10).await.unwrap().len(), 3);
}

async fn the_newest_deployment_of_an_image_is_found(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.ring_deployment(&firmware.id).await.unwrap(), None);
    for n in [1, 2, 3] {
        let mut made = campaign(n, &firmware, "");
        made.spec.ring_deployment = n < 3;
        tx.insert_campaign(&made).await.unwrap();
    }
    let found = tx.ring_deployment(&firmware.id).await.unwrap().unwrap();
    assert_eq!(found.id, campaign(2, &firmware, "").id);
    let mut deleted = found;
    deleted.deleted_at = Some(at(9));
    tx.save_campaign(&deleted).await.unwrap();
    let found = tx.ring_deployment(&firmware.id).await.unwrap().unwrap();
    assert_eq!(found.id, campaign(1, &firmware, "").id);
}
