//! An upload of an image, with both hashes and on the disk when it is answered, beside the hashing alone; and how far
//! the service's memory grows with the largest image.

use std::time::Instant;

use clap::Args;
use md5::Digest as _;

use crate::Plan;
use crate::fleet::{Database, MODEL};
use crate::http::{Admin, Image};
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title, verdict};

/// The largest image that is taken (PRD, FR-1), in MB.
const LARGEST_MB: u16 = 500;
/// Bytes of a MB.
pub(super) const MB: u64 = 1_000_000;
/// The image is this, repeated.
const PIECE_BYTES: usize = 1024 * 1024;

/// How much.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// MB of the timed image.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=i64::from(LARGEST_MB)))]
    pub(crate) megabytes: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { megabytes: 100 }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "upload of {} MB, multipart, durable; MD5 and SHA-256",
        options.megabytes
    ));
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path()).url();
    let piece = piece();
    let mut ours = Series::new("service: request → 201", "MB/s");
    let mut theirs = Series::new("MD5 and SHA-256 alone, one thread", "MB/s");
    let service = Service::start(folder.path(), &database)?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    for round in 0..plan.rounds {
        let version = format!("1.0.{round}");
        let image = Image {
            name: "Bench",
            version: &version,
            model: MODEL,
            size: u64::from(options.megabytes) * MB,
            piece: &piece,
        };
        let began = Instant::now();
        admin.upload(&image)?;
        ours.push(real(image.size / MB) / began.elapsed().as_secs_f64());
        let began = Instant::now();
        hash(&image)?;
        theirs.push(real(image.size / MB) / began.elapsed().as_secs_f64());
    }
    drop(service);
    ours.print();
    theirs.print();
    ratio(
        "upload / hashing alone",
        &ours,
        &theirs,
        Wanted::AtLeast(0.6),
    );
    memory(&piece)
}

/// The largest image into a service that has just started.
fn memory(piece: &[u8]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let service = Service::start(folder.path(), &Database::file_in(folder.path()).url())?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let before = service.process.memory_kib("VmRSS")?;
    let size = u64::from(LARGEST_MB) * MB;
    let began = Instant::now();
    admin.upload(&Image {
        name: "Bench",
        version: "2.0.0",
        model: MODEL,
        size,
        piece,
    })?;
    let took = began.elapsed();
    let highest = service.process.memory_kib("VmHWM")?;
    println!(
        "  {LARGEST_MB} MB in {:.2} s; resident before {before} KiB, at most {highest} KiB",
        took.as_secs_f64()
    );
    let growth = real(highest.saturating_sub(before)) / 1024.0;
    verdict(
        "growth of resident memory",
        growth,
        "MiB",
        Wanted::AtMost(64.0),
    );
    Ok(())
}

fn hash(image: &Image<'_>) -> anyhow::Result<()> {
    let (mut md5, mut sha256) = (md5::Md5::new(), sha2::Sha256::new());
    image.pieces(|piece| {
        // In the pieces in which bytes come from a socket, so that the second hash finds them in the cache.
        for part in piece.chunks(64 * 1024) {
            md5.update(part);
            sha256.update(part);
        }
        Ok(())
    })?;
    std::hint::black_box((md5.finalize(), sha256.finalize()));
    Ok(())
}

/// Bytes without a pattern that anything could profit from.
pub(super) fn piece() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    while bytes.len() < PIECE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}
