//! Both checksums of an image, calculated beside its writing.
//!
//! Bytes gather before they go to a blocking thread, and no thread waits for more: a client that sends slowly holds none.

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{Error, Result};

/// Bytes that gather before they are hashed in one go: a hand-over to the blocking threads costs some 20 µs, hashing a
/// piece of this size a hundred times as much. At most two pieces are held.
const PIECE_BYTES: usize = 1024 * 1024;

/// What the bytes came to.
pub(super) struct Sums {
    pub(super) md5: String,
    pub(super) sha256: [u8; 32],
}

#[derive(Default)]
struct Digests {
    md5: md5::Md5,
    sha256: sha2::Sha256,
}

/// Where the digests are: at rest here, or with the thread that hashes a piece.
enum At {
    Rest(Digests),
    Hashing(JoinHandle<Digests>),
    Lost,
}

/// Checksums under way.
pub(super) struct Hasher {
    at: At,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
}

impl Hasher {
    pub(super) fn new() -> Self {
        Self {
            at: At::Rest(Digests::default()),
            gathered: Vec::new(),
            gathered_bytes: 0,
        }
    }

    /// Takes the next bytes; waits while the piece before is being hashed and the next one is full.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes >= PIECE_BYTES {
            self.push().await
        } else {
            Ok(())
        }
    }

    /// The sums of all that was written.
    pub(super) async fn finish(mut self) -> Result<Sums> {
        use sha2::Digest as _;
        self.push().await?;
        let digests = self.take().await?;
        Ok(Sums {
            md5: hex::encode(digests.md5.finalize()),
            sha256: digests.sha256.finalize().into(),
        })
    }

    /// Sends what has gathered on its way.
    async fn push(&mut self) -> Result<()> {
        use sha2::Digest as _;
        let mut digests = self.take().await?;
        let pieces = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        self.at = At::Hashing(spawn_blocking(move || {
            for piece in &pieces {
                digests.md5.update(piece);
                digests.sha256.update(piece);
            }
            digests
        }));
        Ok(())
    }

    async fn take(&mut self) -> Result<Digests> {
        match std::mem::replace(&mut self.at, At::Lost) {
            At::Rest(digests) => Ok(digests),
            At::Hashing(task) => task.await.map_err(|gone| Error::Internal(Box::new(gone))),
            At::Lost => Err(Error::Internal("an earlier piece was not hashed".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sha2::Digest as _;
    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn sums_are_of_all_bytes_in_their_order_and_hold_no_thread_meanwhile()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let image: Vec<u8> = (0..251).cycle().take(3_000_001).collect();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()?;
        let sums = runtime.block_on(async {
            let mut hasher = Hasher::new();
            for piece in image.chunks(70_000) {
                hasher.write(Bytes::copy_from_slice(piece)).await?;
                // The one thread there is has time for others while the client thinks of the next piece.
                timeout(Duration::from_secs(20), spawn_blocking(|| ())).await??;
            }
            Ok::<_, Box<dyn std::error::Error>>(hasher.finish().await?)
        })?;
        assert_eq!(sums.md5, hex::encode(md5::Md5::digest(&image)));
        let sha256: [u8; 32] = sha2::Sha256::digest(&image).into();
        assert_eq!(sums.sha256, sha256);
        Ok(())
    }
}
