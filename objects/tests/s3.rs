//! What only a bucket can do: be away, refuse, lose or spoil what it was given.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use device_ota_engine::ports::Objects as _;
use device_ota_objects::testing::S3Server;
use device_ota_objects::{S3Settings, S3Store};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// Two parts and a piece.
const LARGE: usize = 17 * 1024 * 1024 + 5;

fn name_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn large() -> Vec<u8> {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(LARGE)
        .collect()
}

/// An object that has arrived and is to be handed over.
async fn arrived(store: &S3Store, bytes: Vec<u8>) -> String {
    let name = name_of(&bytes);
    let mut writer = store.create().await.unwrap();
    writer.write(Bytes::from(bytes)).await.unwrap();
    writer.commit(&name).await.unwrap();
    assert_eq!(store.waiting().await.unwrap(), [name.as_str()]);
    name
}

/// An error with its causes.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_goes_over_in_parts_of_which_none_is_left() {
    let (root, server) = (TempDir::new().unwrap(), S3Server::start().await);
    let store = S3Store::open(root.path(), &server.settings())
        .await
        .unwrap();
    let name = arrived(&store, large()).await;
    store.hand_over(&name).await.unwrap();
    server.parts(2).await;
    assert!(fs::read(server.object(&name)).unwrap() == large());
    assert_eq!(server.unfinished(), [] as [String; 0]);
    // A process that ended just before it could forget the upload comes back to one that is over.
    let note = root.path().join("uploads").join(&name);
    fs::write(&note, "7c7ae2a8-8c8e-4f0e-9f6e-1d2c3b4a5f60").unwrap();
    store.hand_over(&name).await.unwrap();
    assert!(!note.exists());
    // Again, also when it was let go in between, changes nothing.
    store.hand_over(&name).await.unwrap();
    store.let_go(&name).await.unwrap();
    store.hand_over(&name).await.unwrap();
    assert_eq!(store.waiting().await.unwrap(), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_leaves_nothing_and_is_done_again() {
    let (root, mut server) = (TempDir::new().unwrap(), S3Server::start().await);
    let store = S3Store::open(root.path(), &server.settings())
        .await
        .unwrap();
    let name = arrived(&store, large()).await;

    // The server goes away in the middle, and with it the way to take the parts back.
    server.hold(true);
    let under_way = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { store.hand_over(&name).await }
    });
    server.parts(2).await; // both that follow the first are on their way
    server.stop().await;
    let error = under_way.await.unwrap().unwrap_err();
    let text = told(&error);
    assert!(text.contains(&server.endpoint()), "{text}");
    assert!(!server.unfinished().is_empty());
    server.start_again().await;

    // This process ends in the middle of the next attempt.
    let under_way = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { store.hand_over(&name).await }
    });
    server.parts(4).await;
    under_way.abort();
    assert!(under_way.await.unwrap_err().is_cancelled());
    assert!(!server.object(&name).exists());
    server.hold(false);

    drop(store);
    let store = S3Store::open(root.path(), &server.settings())
        .await
        .unwrap();
    assert_eq!(store.waiting().await.unwrap(), [name.as_str()]);
    store.hand_over(&name).await.unwrap();
    assert!(fs::read(server.object(&name)).unwrap() == large());
    assert_eq!(server.unfinished(), [] as [String; 0]);
    let notes = fs::read_dir(root.path().join("uploads")).unwrap();
    assert_eq!(notes.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spoilt_in_the_bucket_is_found_and_written_again() {
    let (root, server) = (TempDir::new().unwrap(), S3Server::start().await);
    let store = S3Store::open(root.path(), &server.settings())
        .await
        .unwrap();
    let name = arrived(&store, b"an image".to_vec()).await;
    for spoilt in [&b"an ima"[..], b"an_image"] {
        fs::create_dir_all(server.object(&name).parent().unwrap()).unwrap();
        fs::write(server.object(&name), spoilt).unwrap();
        store.hand_over(&name).await.unwrap();
        assert_eq!(fs::read(server.object(&name)).unwrap(), b"an image");
    }
    // What is spoilt here is not let in: it would be taken for what its name says.
    let here = root
        .path()
        .join("objects")
        .join(name.split_at(2).0)
        .join(&name);
    fs::write(here, b"an_image").unwrap();
    fs::remove_file(server.object(&name)).unwrap();
    let text = told(&store.hand_over(&name).await.unwrap_err());
    assert!(
        text.contains("read back is not what was uploaded"),
        "{text}"
    );
    assert_eq!(store.waiting().await.unwrap(), [name.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for_and_the_bucket_is_made_then() {
    let (root, mut server) = (TempDir::new().unwrap(), S3Server::start().await);
    server.stop().await;
    let store = S3Store::open(root.path(), &server.settings())
        .await
        .unwrap();
    let name = arrived(&store, b"an image".to_vec()).await;
    for error in [
        store.hand_over(&name).await.unwrap_err(),
        store.ping().await.unwrap_err(),
        store.read(&"0".repeat(64), 0, 1).await.unwrap_err(),
    ] {
        let text = told(&error);
        assert!(
            text.contains(&server.endpoint()) && text.contains("cannot be reached"),
            "{text}"
        );
    }
    server.start_again().await;
    assert!(store.ping().await.is_err(), "there is no bucket yet");
    store.hand_over(&name).await.unwrap();
    store.ping().await.unwrap();
    assert_eq!(fs::read(server.object(&name)).unwrap(), b"an image");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_told_so_at_the_start() {
    let (root, server) = (TempDir::new().unwrap(), S3Server::start().await);
    let good = server.settings();
    for (settings, says) in [
        (
            S3Settings {
                secret_key: "another".to_owned(),
                ..good.clone()
            },
            "secret key",
        ),
        (
            S3Settings {
                bucket: "No_Bucket!".to_owned(),
                ..good.clone()
            },
            "bucket",
        ),
    ] {
        let error = S3Store::open(root.path(), &settings).await.unwrap_err();
        let text = told(&error);
        assert!(
            text.contains(&server.endpoint()) && text.contains(says),
            "{text}"
        );
        assert!(!text.contains("another"), "{text}");
        assert!(!format!("{settings:?}").contains(&settings.secret_key));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_without_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = S3Settings {
        endpoint: format!("http://{}", silent.local_addr().unwrap()),
        public_endpoint: None,
        bucket: "firmware".to_owned(),
        region: "us-east-1".to_owned(),
        access_key: "a".to_owned(),
        secret_key: "b".to_owned(),
    };
    let root = TempDir::new().unwrap();
    let store = Arc::new(S3Store::open(root.path(), &settings).await.unwrap());
    let text = told(&store.ping().await.unwrap_err());
    assert!(text.contains("no answer within 10 s"), "{text}");
}
