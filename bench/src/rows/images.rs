//! Images in a bucket beside the S3 server by itself, and beside images in the local folder: an upload until it is answered, the move
//! to the bucket and its reading back included; and a download by the link that clients are given.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use device_ota_objects::testing::{ACCESS_KEY, BUCKET, SECRET_KEY};
use futures_util::TryStreamExt as _;
use minio::s3::creds::StaticProvider;
use minio::s3::http::BaseUrl;
use minio::s3::types::S3Api as _;
use minio::s3::{MinioClient, MinioClientBuilder};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::upload::{MB, Options, piece};
use crate::Plan;
use crate::fleet::{Database, MODEL};
use crate::http::{Admin, Image, fetch};
use crate::peers::start_bucket;
use crate::service::{Beside, Service};
use crate::stats::{Series, Target as Wanted, compared, ratio, real, title};

/// Bytes of a part, as the service has them.
const PART: u64 = 8 * 1024 * 1024;

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "images of {} MB in a bucket (s3s-fs, on this machine), and in the local folder",
        options.megabytes
    ));
    let files = tempfile::tempdir()?;
    let (_server, bucket) = start_bucket(files.path())?;
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut local = Side::start(here.path(), "local", Vec::new())?;
    let mut straight = Straight::new(&bucket)?;
    let mut remote = Side::start(there.path(), "s3", bucket)?;
    let piece = piece();
    for round in 0..plan.rounds {
        local.round(round, options, &piece)?;
        straight.round(round, options, &piece)?;
        remote.round(round, options, &piece)?;
    }
    for series in [
        &straight.both,
        &local.up,
        &remote.up,
        &local.down,
        &remote.down,
    ] {
        series.print();
    }
    // The service has it on its own disk before, and hashes what it reads.
    ratio(
        "upload, bucket by the service / the S3 server by itself",
        &remote.up,
        &straight.both,
        Wanted::AtLeast(0.6),
    );
    // What follows is said of the S3 server rather than of the service.
    compared("upload, bucket / local folder", &remote.up, &local.up);
    compared(
        "download, presigned / from the service",
        &remote.down,
        &local.down,
    );
    Ok(())
}

/// The S3 server by itself: the same bytes, written by the client library's own upload in parts and read once.
struct Straight {
    runtime: Runtime,
    client: MinioClient,
    both: Series,
}

impl Straight {
    fn new(flags: &[(&'static str, String)]) -> anyhow::Result<Self> {
        let endpoint = flags.iter().find(|(f, _)| *f == "--storage-s3-endpoint");
        let url: BaseUrl = endpoint.context("an endpoint")?.1.parse()?;
        let keys = StaticProvider::new(ACCESS_KEY, SECRET_KEY, None);
        Ok(Self {
            runtime: Runtime::new()?,
            client: MinioClientBuilder::new(url).provider(Some(keys)).build()?,
            both: Series::new("s3 by itself: written and read".to_owned(), "MB/s"),
        })
    }

    fn round(&mut self, round: u32, options: &Options, piece: &[u8]) -> anyhow::Result<()> {
        let size = u64::from(options.megabytes) * MB;
        let pieces = usize::try_from(size)?.div_ceil(piece.len());
        let mut bytes = Bytes::from(piece.repeat(pieces));
        bytes.truncate(usize::try_from(size)?);
        let (client, key) = (&self.client, format!("straight-{round}"));
        let began = Instant::now();
        let read = self.runtime.block_on(async {
            let put = client.put_object_content(BUCKET, key.as_str(), bytes)?;
            put.part_size(PART).build().send().await?;
            let got = client.get_object(BUCKET, key.as_str())?.build().send();
            let (mut pieces, _) = got.await?.into_boxed_stream()?;
            let mut read = 0;
            while let Some(piece) = pieces.try_next().await? {
                read += piece.len() as u64;
            }
            anyhow::Ok(read)
        })?;
        anyhow::ensure!(read == size, "{read} bytes came back");
        self.both
            .push(real(size / MB) / began.elapsed().as_secs_f64());
        Ok(())
    }
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
