//! Uploads: all or nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::firmware::UploadMetadata;
use device_ota_engine::{Engine, Result, Uploaded};
use device_ota_store::testing::run_sql;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fixture::{Fixture, left, tester};
use crate::held::HeldObjects;

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
async fn the_object_of_an_upload_that_died_is_gone_after_the_next_start() {
    let fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"image").await;
    let orphan = "ab".repeat(32);
    let root = fixture.folder.path();
    std::fs::create_dir_all(root.join("objects/ab")).unwrap();
    std::fs::write(root.join("objects/ab").join(&orphan), b"left by a crash").unwrap();
    std::fs::write(root.join("unrecorded").join(&orphan), b"").unwrap();
    fixture.engine.reconcile_objects().await.unwrap();
    left(root, 1).await;
    fixture.stop().await;
}

#[tokio::test]
async fn images_of_another_database_stay() {
    let fixture = Fixture::new().await;
    let other = Fixture::new().await;
    other.upload("1.0.0", b"image").await;
    let (ours, theirs) = (fixture.folder.path(), other.folder.path());
    let name = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d";
    std::fs::create_dir_all(ours.join("objects/61")).unwrap();
    let object = Path::new("objects/61").join(name);
    std::fs::copy(theirs.join(&object), ours.join(&object)).unwrap();
    fixture.engine.reconcile_objects().await.unwrap();
    left(ours, 1).await;
    fixture.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn bytes_that_are_gone_are_brought_back_by_the_same_file() {
    let fixture = Fixture::new().await;
    let Uploaded::Created(first) = fixture.upload("2.0.0", b"image").await else {
        panic!("it is new")
    };
    fixture.device("d0").await;
    let draft = format!(
        r#"{{"name":"c","firmware_id":"{}","deployment_strategy":"immediate"}}"#,
        first.id
    );
    let draft = serde_json::from_str(&draft).unwrap();
    let made = fixture.engine.create_campaign(draft, &tester()).await;
    let campaign = made.unwrap().campaign.id;
    // Objects lie in folders by the first two digits of their names.
    let objects = fixture.folder.path().join("objects/61");
    std::fs::remove_file(objects.join(&first.sha256)).unwrap();
    let started = fixture.engine.start_campaign(&campaign, &tester()).await;
    assert_eq!(started.unwrap_err().code(), "bytes_missing");
    let Uploaded::Existing(again) = fixture.upload("2.0.0", b"image").await else {
        panic!("it is known")
    };
    assert_eq!(again.id, first.id);
    left(fixture.folder.path(), 1).await;
    fixture.engine.reconcile_objects().await.unwrap();
    left(fixture.folder.path(), 1).await;
    fixture
        .engine
        .start_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn an_image_is_never_answered_with_another_one_of_the_same_id() {
    let fixture = Fixture::new().await;
    let upload = async |name: &str, version: &str, model: &str| {
        let mut upload = fixture.engine.begin_upload("a.bin").await.unwrap();
        upload.write(Bytes::from_static(b"image")).await.unwrap();
        let metadata = UploadMetadata {
            name: name.to_owned(),
            version: version.to_owned(),
            device_model: model.to_owned(),
            ..metadata("")
        };
        upload.finish(metadata, None, &tester()).await
    };
    upload("A", "1.0.0", "2.0.0:B").await.unwrap();
    let refused = upload("A:1.0.0", "2.0.0", "B").await.unwrap_err();
    assert_eq!(refused.code(), "other_firmware");
    fixture.stop().await;
}

/// An upload under way, of an image of that version.
fn uploading(
    engine: &Arc<Engine>,
    version: &str,
    content: &'static [u8],
) -> JoinHandle<Result<Uploaded>> {
    let engine = engine.clone();
    let metadata = UploadMetadata {
        version: version.to_owned(),
        ..metadata("")
    };
    tokio::spawn(async move {
        let mut upload = engine.begin_upload("a.bin").await?;
        upload.write(Bytes::from_static(content)).await?;
        upload.finish(metadata, None, &tester()).await
    })
}

async fn sql(fixture: &Fixture, sql: &str) {
    let url = format!("sqlite://{}", fixture.database.path().display());
    run_sql(&url, sql).await.unwrap();
}

#[tokio::test]
async fn a_client_that_hangs_up_at_the_last_moment_leaves_all_or_nothing() {
    let (objects, held) = HeldObjects::new();
    let fixture = Fixture::with_objects(|folder| objects.over(folder)).await;
    let upload = uploading(&fixture.engine, "1.0.0", b"image");
    let release = held.committed().await;
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    release.go_on();
    // It goes on to its end, and the image is there as if the answer had been read.
    let known = async {
        loop {
            let id = metadata("").firmware_id();
            if fixture.engine.firmware(&id).await.is_ok() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), known).await.unwrap();
    left(fixture.folder.path(), 1).await;
    fixture.stop().await;
}

#[tokio::test]
async fn who_is_beaten_to_a_name_leaves_nothing() {
    let (objects, held) = HeldObjects::new();
    let fixture = Fixture::with_objects(|folder| objects.over(folder)).await;
    let slow = uploading(&fixture.engine, "1.0.0", b"slow");
    let release = held.committed().await;
    let fast = uploading(&fixture.engine, "1.0.0", b"fast");
    held.committed().await.go_on();
    assert!(matches!(fast.await.unwrap(), Ok(Uploaded::Created(_))));
    release.go_on();
    assert_eq!(slow.await.unwrap().unwrap_err().code(), "other_content");
    left(fixture.folder.path(), 1).await;
    fixture.stop().await;
}

#[tokio::test]
async fn an_upload_that_fails_takes_no_others_bytes_away() {
    let (objects, held) = HeldObjects::new();
    let fixture = Fixture::with_objects(|folder| objects.over(folder)).await;
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON firmware WHEN NEW.version = '1.0.0' \
                  BEGIN SELECT RAISE(ABORT, 'for a test'); END";
    sql(&fixture, refuse).await;
    let good = uploading(&fixture.engine, "2.0.0", b"the same");
    let release = held.committed().await;
    // The other has its object and not yet its row.
    let mut bad = uploading(&fixture.engine, "1.0.0", b"the same");
    let early = timeout(Duration::from_millis(300), async {
        held.committed().await.go_on();
        (&mut bad).await
    });
    let early = early.await.ok();
    release.go_on();
    let Uploaded::Created(image) = good.await.unwrap().unwrap() else {
        panic!("it is new")
    };
    if early.is_none() {
        held.committed().await.go_on();
        assert!(bad.await.unwrap().is_err());
    }
    let object = fixture
        .folder
        .path()
        .join("objects")
        .join(image.sha256.split_at(2).0);
    assert!(object.join(&image.sha256).exists(), "its bytes are gone");
    fixture.stop().await;
}

#[tokio::test]
async fn an_object_that_could_not_be_taken_back_goes_once_the_database_is_there() {
    let (objects, held) = HeldObjects::new();
    let fixture = Fixture::with_objects(|folder| objects.over(folder)).await;
    let upload = uploading(&fixture.engine, "1.0.0", b"image");
    let release = held.committed().await;
    sql(&fixture, "ALTER TABLE firmware RENAME TO away").await;
    release.go_on();
    assert!(upload.await.unwrap().is_err());
    left(fixture.folder.path(), 1).await;
    sql(&fixture, "ALTER TABLE away RENAME TO firmware").await;
    left(fixture.folder.path(), 0).await;
    fixture.stop().await;
}
