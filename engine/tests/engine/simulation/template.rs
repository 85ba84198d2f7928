//! A database in which everything is ready for a story: devices, the probe and three images. Made once, and copied for
//! each seed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bytes::Bytes;
use device_ota_domain::FirmwareId;
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::ports::Objects;
use device_ota_engine::{RegistrationOutcome, Uploaded};
use device_ota_objects::LocalFolder;
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase};
use serde_json::json;

use super::base::Base;
use super::fate::Process;
use super::life::{Life, PROBE, Place};
use super::world::MAX_DEVICES;
use crate::fixture::{TestClock, tester};

/// Before any story begins.
const BEFORE: i64 = 1_799_999_000_000_000;

pub(super) struct Template {
    bytes: Vec<u8>,
    /// Devices, and their secrets.
    pub(super) devices: Vec<(DeviceRef, String)>,
    images: Vec<(&'static str, FirmwareId)>,
    /// The bytes of the images, by where they lie in the object store.
    objects: Vec<(PathBuf, Vec<u8>)>,
}

/// Bytes of each image.
pub(super) const IMAGE_BYTES: usize = 1_000;
/// Zones of devices, by their numbers: none, one, a half hour and three quarters apart, and one that is none.
const ZONES: [Option<&str>; MAX_DEVICES] = [
    None,
    Some("Asia/Tokyo"),
    Some("Asia/Kolkata"),
    Some("Nowhere/At_All"),
    None,
    Some("Asia/Kathmandu"),
];

/// The time zone of a device by its number.
pub(super) fn zone(index: usize) -> Option<&'static str> {
    ZONES.get(index).copied().flatten()
}

/// The name of a device by its number.
pub(super) fn device_name(index: usize) -> String {
    format!("d{index}")
}

impl Template {
    pub(super) async fn make() -> Self {
        let base = Base::Sqlite(SqliteDatabase::new());
        let filled = Self::fill(&base).await;
        let Base::Sqlite(database) = &base else {
            unreachable!("it is one of SQLite")
        };
        Self {
            bytes: std::fs::read(database.path()).unwrap(),
            ..filled
        }
    }

    /// A database for a story.
    pub(super) async fn base(&self, postgres: bool) -> Base {
        if postgres {
            let base = Base::Postgres(PostgresDatabase::create().await);
            let filled = Self::fill(&base).await;
            assert_eq!(
                filled.devices, self.devices,
                "devices have the same numbers"
            );
            return base;
        }
        let database = SqliteDatabase::new();
        std::fs::write(database.path(), &self.bytes).unwrap();
        Base::Sqlite(database)
    }

    async fn fill(base: &Base) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects: Arc<dyn Objects> = Arc::new(LocalFolder::open(folder.path()).unwrap());
        let place = Place {
            database: base,
            objects: &objects,
            clock: &Arc::new(TestClock(AtomicI64::new(BEFORE))),
            sent: &Arc::default(),
        };
        let (life, _work) = Life::new(&place, Process::new(None), Vec::new(), 0).await;
        let names = (0..MAX_DEVICES).map(device_name).chain([PROBE.to_owned()]);
        let registrations = names.clone().zip(0..).map(|(id, index)| {
            let model = if id == PROBE { "P" } else { "M" };
            let tags = zone(index).map(|zone| json!({ "time_zone": zone }));
            let said = json!({
                "device_id": id, "device_model": model, "manufacturer": "A", "firmware_version": "1.0.0",
                "tags": tags.unwrap_or_else(|| json!({})),
            });
            serde_json::from_value(said).unwrap()
        });
        let (registrations, by) = (registrations.collect(), tester());
        let made = life.engine.register_devices(registrations, &by);
        let made = made.await.unwrap();
        let mut devices = Vec::new();
        for made in made.into_iter().take(MAX_DEVICES) {
            let RegistrationOutcome::Created { secret } = made.outcome else {
                panic!("{} exists", made.device_id)
            };
            let device = life.engine.resolve(&made.device_id).await.unwrap();
            devices.push((device.unwrap(), secret));
        }
        let mut images = Vec::new();
        for version in ["1.0.0", "2.0.0", "3.0.0"] {
            images.push((version, upload(&life, version).await));
        }
        life.end().await;
        Self {
            bytes: Vec::new(),
            devices,
            images,
            objects: objects_in(folder.path()),
        }
    }

    /// Lays the bytes of the images where a story's service looks for them.
    pub(super) fn lay_images(&self, folder: &Path) {
        for (path, bytes) in &self.objects {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub(super) fn image(&self, version: &str) -> &FirmwareId {
        let found = self.images.iter().find(|(of, _)| *of == version);
        &found.expect("it was uploaded").1
    }
}

fn objects_in(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = |path: &Path| {
        let entries = std::fs::read_dir(path).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let found = entries(&folder.join("objects"));
    let found = found.iter().flat_map(|inner| entries(inner));
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path.strip_prefix(folder).unwrap().to_owned(), bytes)
    };
    found.map(read).collect()
}

async fn upload(life: &Life, version: &str) -> FirmwareId {
    let metadata = format!(
        r#"{{"name":"Image","version":"{version}","device_model":"M","manufacturer":"A"}}"#
    );
    let mut upload = life.engine.begin_upload("image.bin").await.unwrap();
    let bytes: Vec<u8> = version.bytes().cycle().take(IMAGE_BYTES).collect();
    upload.write(Bytes::from(bytes)).await.unwrap();
    let metadata = serde_json::from_str(&metadata).unwrap();
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        upload.finish(metadata, None, &tester()).await.unwrap();
    image.id
}
