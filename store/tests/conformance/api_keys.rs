//! API keys: found by the hash of their secrets, used, revoked.

use device_ota_domain::api_key::ApiKey;
use device_ota_domain::page::Page;
use device_ota_domain::{ApiKeyId, Role, Roles};
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::Store;

use crate::fixture::*;

crate::stories!(
    a_key_is_found_by_the_hash_of_its_secret,
    a_key_is_revoked_once_and_its_last_use_only_moves_on,
);

fn key(number: u8) -> ApiKey {
    ApiKey {
        id: ApiKeyId::from_entropy([number; 8]),
        name: format!("key {number}"),
        subject: "somebody".to_owned(),
        roles: Roles::from_iter([Role::Viewer, Role::Uploader]),
        created_at: at(0),
        created_by: "admin".to_owned(),
        expires_at: (number == 1).then(|| at(60)),
        last_used_at: None,
        revoked_at: None,
    }
}

async fn insert(store: &dyn Store, key: &ApiKey, sha256: &str) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    tx.insert_api_key(key, sha256).await?;
    tx.commit().await.map(drop)
}

async fn a_key_is_found_by_the_hash_of_its_secret(store: &dyn Store) {
    let (first, second) = (key(1), key(2));
    insert(store, &first, "aa").await.unwrap();
    insert(store, &second, "bb").await.unwrap();
    assert_eq!(
        store.api_key_of_secret("aa").await.unwrap().as_ref(),
        Some(&first)
    );
    assert_eq!(store.api_key_of_secret("cc").await.unwrap(), None);
    assert_eq!(
        store.api_keys(Page::default()).await.unwrap(),
        [second.clone(), first],
        "newest first"
    );
    for taken in [insert(store, &key(3), "aa"), insert(store, &second, "dd")] {
        assert!(matches!(
            taken.await,
            Err(StoreError::Conflict("the API key"))
        ));
    }
}

async fn a_key_is_revoked_once_and_its_last_use_only_moves_on(store: &dyn Store) {
    let key = key(1);
    insert(store, &key, "aa").await.unwrap();
    let mut tx = store.begin().await.unwrap();
    for (used, revoked) in [(5, 20), (9, 30), (7, 25)] {
        tx.api_key_used(&key.id, at(used)).await.unwrap();
        tx.revoke_api_key(&key.id, at(revoked)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let expected = ApiKey {
        last_used_at: Some(at(9)),
        revoked_at: Some(at(20)),
        ..key.clone()
    };
    assert_eq!(store.api_key(&key.id).await.unwrap(), Some(expected));
}
