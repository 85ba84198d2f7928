//! What the engine relies on in a store of objects, told against real ones: a local folder, and a bucket of an S3 server with a
//! local folder before it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, Objects};
use device_ota_objects::testing::S3Server;
use device_ota_objects::{LocalFolder, S3Store};
use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A name that is nobody's.
const OTHER: &str = "ff00c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A store, and what it stands on.
struct Place {
    root: TempDir,
    objects: Arc<dyn Objects>,
    server: Option<S3Server>,
}

impl Place {
    async fn local() -> Self {
        Self::on(TempDir::new().unwrap(), None).await
    }

    async fn s3() -> Self {
        Self::on(TempDir::new().unwrap(), Some(S3Server::start().await)).await
    }

    async fn on(root: TempDir, server: Option<S3Server>) -> Self {
        let objects: Arc<dyn Objects> = match &server {
            None => Arc::new(LocalFolder::open(root.path()).unwrap()),
            Some(server) => {
                let opened = S3Store::open(root.path(), &server.settings()).await;
                Arc::new(opened.unwrap())
            }
        };
        Self {
            root,
            objects,
            server,
        }
    }

    async fn opened_again(self) -> Self {
        let Self {
            root,
            server,
            objects,
        } = self;
        drop(objects);
        Self::on(root, server).await
    }

    /// Writes an object in pieces and brings it to where it belongs; answers its name.
    async fn put(&self, bytes: &[u8], piece: usize) -> String {
        let name = name_of(bytes);
        let mut writer = self.objects.create().await.unwrap();
        for piece in bytes.chunks(piece) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        writer.commit(&name).await.unwrap();
        for waiting in self.objects.waiting().await.unwrap() {
            self.objects.hand_over(&waiting).await.unwrap();
            self.objects.let_go(&waiting).await.unwrap();
        }
        name
    }

    async fn get(&self, name: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>, ObjectError> {
        let pieces: Vec<Bytes> = self.objects.open(name, range).await?.try_collect().await?;
        Ok(pieces.concat())
    }

    /// Where the bytes of an object are.
    fn file(&self, name: &str) -> std::path::PathBuf {
        match &self.server {
            None => in_folder(self.root.path(), name),
            Some(server) => server.object(name),
        }
    }
}

/// Runs a story over each store.
macro_rules! over_all {
    ($($story:ident),+ $(,)?) => {
        $(mod $story {
            #[tokio::test(flavor = "multi_thread")]
            async fn local() {
                super::$story(super::Place::local().await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn s3() {
                super::$story(super::Place::s3().await).await;
            }
        })+
    };
}

over_all!(
    what_was_written_is_read_back_whole_and_in_ranges,
    a_stream_past_the_end_says_so_instead_of_ending_early,
    a_dropped_writer_leaves_nothing,
    what_a_crash_left_is_swept_at_the_next_start_and_objects_stay,
    an_object_that_is_there_is_kept,
    a_missing_object_is_missing,
    what_was_not_handed_over_may_be_taken_back_again_and_again,
    no_name_leads_out_of_the_store,
    ping_needs_a_folder_that_can_be_written_to,
);

/// Where an object lies in a local folder.
fn in_folder(root: &Path, name: &str) -> std::path::PathBuf {
    root.join("objects").join(name.split_at(2).0).join(name)
}

fn name_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Bytes in which every position tells itself from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
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

async fn what_was_written_is_read_back_whole_and_in_ranges(place: Place) {
    let bytes = pattern(3 * 1024 * 1024 + 17);
    let name = place.put(&bytes, 100_003).await;

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
            place.get(&name, range.clone()).await.unwrap() == expected,
            "{range:?}"
        );
    }
    let objects = &place.objects;
    assert_eq!(objects.read(&name, 10, 4).await.unwrap(), bytes[10..14]);
    assert_eq!(
        objects.read(&name, size - 2, 100).await.unwrap(),
        bytes[bytes.len() - 2..],
        "fewer at the end"
    );
    assert!(objects.read(&name, size + 5, 100).await.unwrap().is_empty());
    assert!(objects.read(&name, 5, 0).await.unwrap().is_empty());
    assert_eq!(temporaries(place.root.path()), 0);
    assert!(fs::read(place.file(&name)).unwrap() == bytes);
    // With this process only when there is no other place.
    let here = objects.unrecorded().await.unwrap();
    assert_eq!(here.is_empty(), place.server.is_some(), "{here:?}");
}

async fn a_stream_past_the_end_says_so_instead_of_ending_early(place: Place) {
    let name = place.put(b"short", 5).await;
    for range in [0..6, 2..9, 7..9] {
        assert!(matches!(
            place.get(&name, range).await,
            Err(ObjectError::Unavailable(_))
        ));
    }
}

async fn a_dropped_writer_leaves_nothing(place: Place) {
    let (root, objects) = (place.root.path(), &place.objects);
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
    assert_eq!(temporaries(root), 2);

    drop(at_rest);
    drop(on_its_way);
    until_no_temporary_is_left(root).await;
    assert!(objects.unrecorded().await.unwrap().is_empty());
}

async fn what_a_crash_left_is_swept_at_the_next_start_and_objects_stay(place: Place) {
    let name = place.put(b"whole", 5).await;
    fs::write(place.root.path().join("tmp/0"), b"half").unwrap();

    let place = place.opened_again().await;
    assert_eq!(temporaries(place.root.path()), 0);
    assert_eq!(place.get(&name, 0..5).await.unwrap(), b"whole");
}

async fn an_object_that_is_there_is_kept(place: Place) {
    let name = place.put(b"first", 5).await;
    let written = fs::metadata(place.file(&name)).unwrap().modified().unwrap();
    assert_eq!(place.put(b"first", 2).await, name);
    let now = fs::metadata(place.file(&name)).unwrap().modified().unwrap();
    assert_eq!(written, now, "written once");
    assert_eq!(place.get(&name, 0..5).await.unwrap(), b"first");
    assert_eq!(temporaries(place.root.path()), 0);
    assert!(place.objects.waiting().await.unwrap().is_empty());
}

async fn a_missing_object_is_missing(place: Place) {
    place.put(b"x", 1).await;
    for range in [0..1, 0..0] {
        assert!(
            matches!(place.get(OTHER, range).await, Err(ObjectError::Missing(name)) if name == OTHER)
        );
    }
    assert!(matches!(
        place.objects.read(OTHER, 0, 1).await,
        Err(ObjectError::Missing(_))
    ));
}

async fn what_was_not_handed_over_may_be_taken_back_again_and_again(place: Place) {
    let name = name_of(b"x");
    let mut writer = place.objects.create().await.unwrap();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    writer.commit(&name).await.unwrap();
    assert_eq!(place.objects.unrecorded().await.unwrap(), [name.as_str()]);
    assert_eq!(
        place.get(&name, 0..1).await.unwrap(),
        b"x",
        "served meanwhile"
    );
    place.objects.remove(&name).await.unwrap();
    place.objects.remove(&name).await.unwrap();
    assert!(matches!(
        place.objects.read(&name, 0, 1).await,
        Err(ObjectError::Missing(_))
    ));
}

async fn no_name_leads_out_of_the_store(place: Place) {
    let (root, objects) = (place.root.path(), &place.objects);
    fs::write(root.join("secret"), b"secret").unwrap();
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
        &OTHER.to_uppercase(),
    ] {
        assert!(
            matches!(objects.read(name, 0, 6).await, Err(ObjectError::Missing(_))),
            "{name}"
        );
        objects.remove(name).await.unwrap();
        let writer = objects.create().await.unwrap();
        assert!(writer.commit(name).await.is_err(), "{name}");
    }
    assert!(root.join("secret").is_file());
    until_no_temporary_is_left(root).await;
}

async fn ping_needs_a_folder_that_can_be_written_to(place: Place) {
    place.objects.ping().await.unwrap();
    fs::remove_dir(place.root.path().join("tmp")).unwrap();
    assert!(place.objects.ping().await.is_err());
}
