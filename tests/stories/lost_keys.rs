//! Keys that devices trust are never replaced unasked: a start that misses some of them is refused, and makes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::harness::{Options, Service, device_json};

/// What the first start makes, and no later one.
const MADE: [&str; 4] = [
    "keys/root.pem",
    "keys/release.pem",
    "keys/dispatch.pem",
    "trust/1.json",
];

matrix!(one_that_is_lost_is_told_and_not_replaced: sqlite_gateway);
matrix!(new_ones_are_made_while_nothing_trusts_the_old: sqlite_gateway, postgres_gateway);
matrix!(devices_keep_their_keys: sqlite_gateway, postgres_gateway);
matrix!(firmware_keeps_its_keys: sqlite_gateway, postgres_gateway);

/// Whether it ended well, and all that it said.
async fn said(service: &Service, words: &[&str]) -> (bool, String) {
    service.said(&service.data_dir(), &[], words).await
}

/// A start is refused, names all of these, and leaves every file as it was.
async fn is_refused(service: &Service, names: &[&str]) {
    let before = files(&service.data_dir());
    let (started, said) = said(service, &[]).await;
    assert!(!started, "{said}");
    for name in names.iter().chain(&["backup", "anew"]) {
        assert!(said.contains(name), "names {name}: {said}");
    }
    let after = files(&service.data_dir());
    assert!(
        before == after,
        "files now: {:?}, before: {:?}",
        after.keys(),
        before.keys()
    );
}

/// Every file of the folder with its content, but for the database.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !name.contains("device-ota.db") {
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

async fn one_that_is_lost_is_told_and_not_replaced(options: Options) {
    let mut service = Service::start(options).await;
    let trust = service.admin().get("/api/v1/ota/trust/root").await;
    let trust = trust.expect(200);
    service.stop().await;
    let (data, aside) = (service.data_dir(), service.scratch().join("aside"));
    for name in MADE {
        fs::rename(data.join(name), &aside).unwrap();
        let (usable, told) = said(&service, &["check-config"]).await;
        assert!(!usable && told.contains(name), "{told}");
        is_refused(&service, &[name]).await;
        fs::rename(&aside, data.join(name)).unwrap();
    }

    // Another key in its place is no root key.
    fs::rename(data.join("keys/root.pem"), &aside).unwrap();
    fs::copy(data.join("keys/release.pem"), data.join("keys/root.pem")).unwrap();
    let (usable, told) = said(&service, &["check-config"]).await;
    assert!(!usable && told.contains("root.pem"), "{told}");
    let before = files(&data);
    let (started, told) = said(&service, &[]).await;
    assert!(!started && told.contains("root.pem"), "{told}");
    assert!(files(&data) == before);
    fs::rename(&aside, data.join("keys/root.pem")).unwrap();

    service.start_again().await;
    let again = service.admin().get("/api/v1/ota/trust/root").await;
    assert_eq!(again.expect(200), trust);
}

async fn new_ones_are_made_while_nothing_trusts_the_old(options: Options) {
    let mut service = Service::start(options).await;
    service.kill();
    let data = service.data_dir();
    let before = files(&data);
    fs::remove_dir_all(data.join("keys")).unwrap();
    fs::remove_dir_all(data.join("trust")).unwrap();
    let (usable, told) = said(&service, &["check-config"]).await;
    assert!(usable, "{told}");
    service.start_again().await;
    let after = files(&data);
    assert!(before.keys().eq(after.keys()), "{:?}", after.keys());
    for name in MADE {
        let name = data.join(name).display().to_string();
        assert_ne!(before[&name], after[&name], "{name}");
    }
}

async fn devices_keep_their_keys(options: Options) {
    let service = Service::start(options).await;
    service.register(device_json("frame-1")).await;
    all_that_are_lost_come_back(service).await;
}

async fn firmware_keeps_its_keys(options: Options) {
    let service = Service::start(options).await;
    service.admin().image("2.1.0").await;
    all_that_are_lost_come_back(service).await;
}

async fn all_that_are_lost_come_back(mut service: Service) {
    service.stop().await;
    let (data, aside) = (service.data_dir(), service.scratch().join("aside"));
    fs::create_dir(&aside).unwrap();
    for folder in ["keys", "trust"] {
        fs::rename(data.join(folder), aside.join(folder)).unwrap();
    }
    is_refused(&service, &MADE).await;
    for folder in ["keys", "trust"] {
        assert!(!data.join(folder).exists(), "{folder} is not made");
        fs::rename(aside.join(folder), data.join(folder)).unwrap();
    }
    service.start_again().await;
}
