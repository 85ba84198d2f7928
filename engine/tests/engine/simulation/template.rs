//! A database in which everything is ready for a story: devices, the probe and three images. Made once, and copied for
//! each seed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bytes::Bytes;
use device_ota_domain::FirmwareId;
use device_ota_engine::Uploaded;
use device_ota_engine::inbound::DeviceRef;
use device_ota_store::testing::SqliteDatabase;

use super::fate::Process;
use super::life::{Life, PROBE, Place};
use super::world::MAX_DEVICES;
use crate::fixture::{TestClock, tester};

/// Before any story begins.
const BEFORE: i64 = 1_799_999_000_000_000;

pub(super) struct Template {
    bytes: Vec<u8>,
    pub(super) devices: Vec<DeviceRef>,
    images: Vec<(&'static str, FirmwareId)>,
}

/// The name of a device by its number.
pub(super) fn device_name(index: usize) -> String {
    format!("d{index}")
}

impl Template {
    pub(super) async fn make() -> Self {
        let database = SqliteDatabase::new();
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            database: &database,
            folder: folder.path(),
            clock: &Arc::new(TestClock(AtomicI64::new(BEFORE))),
        };
        let (life, _work) = Life::new(&place, Process::new(None), Vec::new(), 0).await;
        let names = (0..MAX_DEVICES).map(device_name).chain([PROBE.to_owned()]);
        let registrations = names.clone().map(|id| {
            let model = if id == PROBE { "P" } else { "M" };
            let json = format!(
                r#"{{"device_id":"{id}","device_model":"{model}","manufacturer":"A","firmware_version":"1.0.0"}}"#
            );
            serde_json::from_str(&json).unwrap()
        });
        let (registrations, by) = (registrations.collect(), tester());
        let made = life.engine.register_devices(registrations, &by);
        made.await.unwrap();
        let mut devices = Vec::new();
        for name in (0..MAX_DEVICES).map(device_name) {
            let id = name.parse().unwrap();
            devices.push(life.engine.resolve(&id).await.unwrap().unwrap());
        }
        let mut images = Vec::new();
        for version in ["1.0.0", "2.0.0", "3.0.0"] {
            images.push((version, upload(&life, version).await));
        }
        life.end().await;
        Self {
            bytes: std::fs::read(database.path()).unwrap(),
            devices,
            images,
        }
    }

    pub(super) fn copy_to(&self, path: &Path) {
        std::fs::write(path, &self.bytes).unwrap();
    }

    pub(super) fn image(&self, version: &str) -> &FirmwareId {
        let found = self.images.iter().find(|(of, _)| *of == version);
        &found.expect("it was uploaded").1
    }
}

async fn upload(life: &Life, version: &str) -> FirmwareId {
    let metadata = format!(
        r#"{{"name":"Image","version":"{version}","device_model":"M","manufacturer":"A"}}"#
    );
    let mut upload = life.engine.begin_upload("image.bin").await.unwrap();
    upload.write(Bytes::from(version.to_owned())).await.unwrap();
    let metadata = serde_json::from_str(&metadata).unwrap();
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        upload.finish(metadata, None, &tester()).await.unwrap();
    image.id
}
