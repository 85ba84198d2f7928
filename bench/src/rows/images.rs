//! Images in a bucket beside images in the local folder: an upload until it is answered, the move to the bucket and its reading back
//! included; and a download by the link that clients are given.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;

use super::upload::{MB, Options, piece};
use crate::Plan;
use crate::fleet::{Database, MODEL};
use crate::http::{Admin, Image, fetch};
use crate::peers::start_bucket;
use crate::service::{Beside, Service};
use crate::stats::{Series, Target as Wanted, ratio, real, title};

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "images of {} MB in a bucket (s3s-fs, on this machine), and in the local folder",
        options.megabytes
    ));
    let files = tempfile::tempdir()?;
    let (_server, bucket) = start_bucket(files.path())?;
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut local = Side::start(here.path(), "local", Vec::new())?;
    let mut remote = Side::start(there.path(), "s3", bucket)?;
    let piece = piece();
    for round in 0..plan.rounds {
        local.round(round, options, &piece)?;
        remote.round(round, options, &piece)?;
    }
    for series in [&local.up, &remote.up, &local.down, &remote.down] {
        series.print();
    }
    // The bytes go to the disk twice, and are read and hashed once more.
    ratio(
        "upload, bucket / local folder",
        &remote.up,
        &local.up,
        Wanted::AtLeast(0.25),
    );
    ratio(
        "download, presigned / from the service",
        &remote.down,
        &local.down,
        Wanted::AtLeast(0.5),
    );
    Ok(())
}

/// A service and its figures.
struct Side {
    service: Service,
    storage: &'static str,
    up: Series,
    down: Series,
}

impl Side {
    fn start(
        folder: &Path,
        storage: &'static str,
        flags: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let beside = Beside {
            flags,
            ..Beside::default()
        };
        let database = Database::file_in(folder).url();
        Ok(Self {
            service: Service::start_beside(folder, &database, &beside)?,
            storage,
            up: Series::new(format!("{storage}: upload → 201"), "MB/s"),
            down: Series::new(format!("{storage}: download by a link"), "MB/s"),
        })
    }

    fn round(&mut self, round: u32, options: &Options, piece: &[u8]) -> anyhow::Result<()> {
        let admin = Admin {
            addr: self.service.http,
            key: &self.service.key,
        };
        let version = format!("1.0.{round}");
        let image = Image {
            name: "Bench",
            version: &version,
            model: MODEL,
            size: u64::from(options.megabytes) * MB,
            piece,
        };
        let rate = |began: Instant| real(image.size / MB) / began.elapsed().as_secs_f64();
        let began = Instant::now();
        let firmware = admin.upload(&image)?;
        self.up.push(rate(began));
        let text = |value: &Value, name: &str| {
            let found = value.get(name).and_then(Value::as_str);
            found
                .map(str::to_owned)
                .with_context(|| format!("no {name}"))
        };
        let storage = text(&firmware, "storage")?;
        anyhow::ensure!(storage == self.storage, "the image is in {storage}");
        let id = text(&firmware, "firmware_id")?;
        let grant = admin.get(&format!("/api/v1/ota/firmware/{id}/download"))?;
        let url = text(&grant, "url")?;
        let began = Instant::now();
        let bytes = fetch(&url)?;
        self.down.push(rate(began));
        anyhow::ensure!(bytes == image.size, "{bytes} bytes came");
        Ok(())
    }
}
