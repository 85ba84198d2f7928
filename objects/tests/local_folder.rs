//! What the engine relies on in a local folder, told against a real one.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, Objects};
use device_ota_objects::LocalFolder;
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

/// A name as good as any; the folder does not check that it is the bytes' hash.
const NAME: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OTHER: &str = "ff00c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn folder() -> (TempDir, LocalFolder) {
    let root = TempDir::new().unwrap();
    let objects = LocalFolder::open(root.path()).unwrap();
    (root, objects)
}

/// Bytes in which every position tells itself from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
}

async fn put(objects: &LocalFolder, name: &str, bytes: &[u8], piece: usize) {
    let mut writer = objects.create().await.unwrap();
    for piece in bytes.chunks(piece) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    writer.commit(name).await.unwrap();
}

async fn get(
    objects: &LocalFolder,
    name: &str,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, ObjectError> {
    let pieces: Vec<Bytes> = objects.open(name, range).await?.try_collect().await?;
    Ok(pieces.concat())
}

fn temporaries(root: &Path) -> usize {
    fs::read_dir(root.join("tmp")).unwrap().count()
}

async fn until_no_temporary_is_left(root: &Path) {
    let swept = async {
        while temporaries(root) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), swept)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_back_whole_and_in_ranges() {
    let (root, objects) = folder();
    let bytes = pattern(3 * 1024 * 1024 + 17);
    put(&objects, NAME, &bytes, 100_003).await;

    let size = bytes.len() as u64;
    for range in [
        0..size,
        0..1,
        size - 1..size,
        5..5,
        262_143..262_145,
        1_000_000..2_000_000,
    ] {
        let expected =
            &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(
            get(&objects, NAME, range.clone()).await.unwrap() == expected,
            "{range:?}"
        );
    }
    assert_eq!(objects.read(NAME, 10, 4).await.unwrap(), bytes[10..14]);
    assert_eq!(
        objects.read(NAME, size - 2, 100).await.unwrap(),
        bytes[bytes.len() - 2..],
        "fewer at the end"
    );
    assert!(objects.read(NAME, size + 5, 100).await.unwrap().is_empty());
    assert_eq!(objects.names().await.unwrap(), [NAME]);
    assert_eq!(temporaries(root.path()), 0);
    assert!(root.path().join("objects/e3").join(NAME).is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_past_the_end_says_so_instead_of_ending_early() {
    let (_root, objects) = folder();
    put(&objects, NAME, b"short", 5).await;
    assert!(matches!(
        get(&objects, NAME, 0..6).await,
        Err(ObjectError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_writer_leaves_nothing() {
    let (root, objects) = folder();
    let mut at_rest = objects.create().await.unwrap();
    at_rest
        .write(Bytes::from_static(b"a little"))
        .await
        .unwrap();
    let mut on_its_way = objects.create().await.unwrap();
    on_its_way
        .write(pattern(4 * 1024 * 1024).into())
        .await
        .unwrap();
    assert_eq!(temporaries(root.path()), 2);

    drop(at_rest);
    drop(on_its_way);
    until_no_temporary_is_left(root.path()).await;
    assert!(objects.names().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_swept_at_the_next_start_and_objects_stay() {
    let (root, objects) = folder();
    put(&objects, NAME, b"whole", 5).await;
    fs::write(root.path().join("tmp/0"), b"half").unwrap();

    let reopened = LocalFolder::open(root.path()).unwrap();
    assert_eq!(temporaries(root.path()), 0);
    assert_eq!(get(&reopened, NAME, 0..5).await.unwrap(), b"whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_there_is_kept() {
    let (root, objects) = folder();
    put(&objects, NAME, b"first", 5).await;
    put(&objects, NAME, b"again", 5).await;
    assert_eq!(get(&objects, NAME, 0..5).await.unwrap(), b"first");
    assert_eq!(temporaries(root.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_object_is_missing_and_may_be_removed_again() {
    let (_root, objects) = folder();
    put(&objects, NAME, b"x", 1).await;
    assert!(
        matches!(get(&objects, OTHER, 0..1).await, Err(ObjectError::Missing(name)) if name == OTHER)
    );
    assert!(matches!(
        objects.read(OTHER, 0, 1).await,
        Err(ObjectError::Missing(_))
    ));
    objects.remove(NAME).await.unwrap();
    objects.remove(NAME).await.unwrap();
    assert!(matches!(
        objects.read(NAME, 0, 1).await,
        Err(ObjectError::Missing(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_the_folder() {
    let (root, objects) = folder();
    fs::write(root.path().join("secret"), b"secret").unwrap();
    let climbing = format!("{}secret", "../".repeat(19))
        .chars()
        .rev()
        .take(64)
        .collect::<String>();
    for name in [
        "../secret",
        "",
        "../../../../etc/passwd",
        climbing.as_str(),
        &NAME.to_uppercase(),
    ] {
        assert!(
            matches!(objects.read(name, 0, 6).await, Err(ObjectError::Missing(_))),
            "{name}"
        );
        objects.remove(name).await.unwrap();
        let writer = objects.create().await.unwrap();
        assert!(writer.commit(name).await.is_err(), "{name}");
    }
    assert!(root.path().join("secret").is_file());
    until_no_temporary_is_left(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ping_needs_a_folder_that_can_be_written_to() {
    let (root, objects) = folder();
    objects.ping().await.unwrap();
    fs::remove_dir(root.path().join("tmp")).unwrap();
    assert!(objects.ping().await.is_err());
}
