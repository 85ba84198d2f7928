//! Uploads: all or nothing.

use bytes::Bytes;
use device_ota_domain::firmware::UploadMetadata;
use device_ota_engine::Uploaded;

use crate::fixture::{Fixture, left, tester};

fn metadata(more: &str) -> UploadMetadata {
    let text = format!(
        r#"{{"name":"Image","version":"1.0.0","device_model":"M","manufacturer":"A"{more}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_refused_upload_leaves_nothing() {
    let fixture = Fixture::new().await;
    assert_eq!(
        fixture
            .engine
            .begin_upload("setup.exe")
            .await
            .err()
            .map(|e| e.code()),
        Some("unsupported_format")
    );

    let empty = fixture.engine.begin_upload("a.bin").await.unwrap();
    assert_eq!(
        empty
            .finish(metadata(""), None, &tester())
            .await
            .unwrap_err()
            .code(),
        "empty_image"
    );

    let mut wrong = fixture.engine.begin_upload("a.bin").await.unwrap();
    wrong.write(Bytes::from_static(b"image")).await.unwrap();
    let sum = format!(r#","checksum_md5":"{}""#, "0".repeat(32));
    assert_eq!(
        wrong
            .finish(metadata(&sum), None, &tester())
            .await
            .unwrap_err()
            .code(),
        "checksum_mismatch"
    );

    let mut broken = fixture.engine.begin_upload("a.bin").await.unwrap();
    broken
        .write(Bytes::from_static(b"half an im"))
        .await
        .unwrap();
    drop(broken);

    fixture.engine.reconcile_objects().await.unwrap();
    left(fixture.folder.path(), 0).await;
    fixture.stop().await;
}

#[tokio::test]
async fn the_same_bytes_are_the_same_record_and_other_bytes_are_refused() {
    let fixture = Fixture::new().await;
    let Uploaded::Created(first) = fixture.upload("1.0.0", b"image").await else {
        panic!("it is new")
    };
    assert_eq!(first.md5, "78805a221a988e79ef3f42d7c5bfd418");
    let Uploaded::Existing(again) = fixture.upload("1.0.0", b"image").await else {
        panic!("it is known")
    };
    assert_eq!(again.id, first.id);
    let mut other = fixture.engine.begin_upload("a.bin").await.unwrap();
    other.write(Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(
        other
            .finish(metadata(""), None, &tester())
            .await
            .unwrap_err()
            .code(),
        "other_content"
    );
    left(fixture.folder.path(), 1).await;
    fixture.stop().await;
}

#[tokio::test]
async fn an_object_without_a_record_is_gone_after_the_next_start() {
    let fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"image").await;
    let orphan = "ab".repeat(32);
    let folder = fixture.folder.path().join("objects/ab");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&orphan), b"left by a crash").unwrap();
    fixture.engine.reconcile_objects().await.unwrap();
    assert!(!folder.join(&orphan).exists());
    left(fixture.folder.path(), 1).await;
    fixture.stop().await;
}
