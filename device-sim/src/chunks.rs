//! Fetching an image over MQTT in chunks: windows of requests, whatever order the chunks come in,
//! and a new request for what did not come. Does no I/O; the device sends what it asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use device_ota_protocol::agent::Download;
use device_ota_protocol::digest::Digest;
use device_ota_protocol::messages::ChunkRequest;
use tokio::time::Instant;

use crate::download::Flash;

/// Bytes a chunk.
pub const CHUNK: u32 = 32 * 1024;
/// Chunks asked for at once: bounds what a device holds of chunks that came too early.
pub const WINDOW: u32 = 8;
/// How long to wait for a chunk before asking again.
const PATIENCE: Duration = Duration::from_secs(3);
/// Requests in a row that bring nothing before it is given up: about as long as a restart of the
/// service takes, and some more.
const MAX_STALLS: u32 = 20;

/// One image on its way in chunks.
#[derive(Debug)]
pub struct Chunks {
    sha256: Digest,
    size: u64,
    request: u32,
    /// End of what was asked for.
    asked: u64,
    /// Chunks that came before those in front of them.
    early: BTreeMap<u64, Bytes>,
    due: Instant,
    stalls: u32,
    /// Requests that were needed because chunks did not come.
    pub repeats: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for more of the window.
    Wait,
    /// Send this.
    Ask(ChunkRequest),
    /// All bytes are written.
    Done,
    /// Nobody sends any.
    GiveUp,
}

impl Chunks {
    /// Begins, or goes on with, an image. The first [`Chunks::overdue`] asks for it.
    pub fn begin(job: &Download, request: u32, flash: &mut Flash, now: Instant) -> Self {
        let from = flash.begin(job.sha256, job.offset);
        Self {
            sha256: job.sha256,
            size: job.size,
            request,
            asked: from,
            early: BTreeMap::new(),
            due: now,
            stalls: 0,
            repeats: 0,
        }
    }

    /// When to call [`Chunks::overdue`].
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The number of the last request: a later fetch goes on counting from it.
    pub fn last_request(&self) -> u32 {
        self.request
    }

    /// Takes a chunk that arrived for a request.
    pub fn arrived(&mut self, offset: u64, bytes: Bytes, flash: &mut Flash, now: Instant) -> Next {
        let useful = offset >= flash.len()
            && offset < self.asked
            && offset + bytes.len() as u64 <= self.size
            && !bytes.is_empty();
        if !useful {
            return Next::Wait;
        }
        self.stalls = 0;
        self.due = now + PATIENCE;
        self.early.insert(offset, bytes);
        while let Some(entry) = self.early.first_entry()
            && *entry.key() <= flash.len()
        {
            let at = *entry.key();
            let bytes = entry.remove();
            if at == flash.len() {
                flash.write(&bytes);
            }
        }
        self.go_on(flash, now)
    }

    /// Asks again for what did not come in time.
    pub fn overdue(&mut self, flash: &Flash, now: Instant) -> Next {
        if now < self.due {
            return Next::Wait;
        }
        if self.asked > flash.len() {
            self.stalls += 1;
            self.repeats += 1;
            self.asked = flash.len();
        }
        if self.stalls > MAX_STALLS {
            return Next::GiveUp;
        }
        self.go_on(flash, now)
    }

    /// The connection is gone, and all that was on its way.
    pub fn disconnected(&mut self, now: Instant) {
        self.due = now;
    }

    fn go_on(&mut self, flash: &Flash, now: Instant) -> Next {
        if flash.len() >= self.size {
            return Next::Done;
        }
        if flash.len() < self.asked {
            return Next::Wait;
        }
        // Not more than is missing before the first chunk that is here already.
        let end = self.early.keys().next().copied().unwrap_or(self.size);
        let missing = end.saturating_sub(flash.len()).div_ceil(CHUNK.into());
        let count = u32::try_from(missing).unwrap_or(WINDOW).clamp(1, WINDOW);
        self.request = self.request.wrapping_add(1);
        self.asked = flash.len() + u64::from(CHUNK) * u64::from(count);
        self.due = now + PATIENCE;
        Next::Ask(ChunkRequest {
            request: self.request,
            sha256: self.sha256,
            offset: flash.len(),
            length: CHUNK,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        (0..600_000_u32).map(|n| n.to_le_bytes()[0]).collect()
    }

    /// Answers a request, and leaves out or turns round what `spoil` says.
    fn run(spoil: impl Fn(u64, &mut Vec<(u64, u32)>)) -> (Chunks, Flash, u64) {
        let image = image();
        let job = Download {
            update_id: "upd_1".to_owned(),
            urls: Vec::new(),
            size: image.len() as u64,
            sha256: Digest::of(&image),
            offset: 0,
        };
        let (mut flash, mut now) = (Flash::default(), Instant::now());
        let mut chunks = Chunks::begin(&job, 0, &mut flash, now);
        let mut requests = 0;
        let mut next = chunks.overdue(&flash, now);
        while next != Next::Done {
            let Next::Ask(ask) = next else {
                now = chunks.due();
                next = chunks.overdue(&flash, now);
                assert_ne!(next, Next::GiveUp);
                continue;
            };
            requests += 1;
            let mut answer: Vec<_> = ask.chunks(job.size).collect();
            spoil(requests, &mut answer);
            next = Next::Wait;
            for (offset, length) in answer {
                let bytes = image.iter().skip(usize::try_from(offset).expect("small"));
                let bytes: Bytes = bytes.take(length as usize).copied().collect();
                match chunks.arrived(offset, bytes, &mut flash, now) {
                    Next::Wait => {}
                    other => next = other,
                }
            }
        }
        assert_eq!(flash.digest(), job.sha256);
        (chunks, flash, requests)
    }

    #[test]
    fn an_image_comes_whole_in_order() {
        let (chunks, flash, requests) = run(|_, _| {});
        assert_eq!(flash.len(), 600_000);
        assert_eq!((requests, chunks.repeats), (3, 0));
    }

    #[test]
    fn order_does_not_matter() {
        let (chunks, ..) = run(|_, answer| answer.reverse());
        assert_eq!(chunks.repeats, 0);
    }

    #[test]
    fn what_is_missing_is_asked_for_again_and_nothing_else() {
        let (chunks, _, requests) = run(|n, answer| {
            if n == 1 {
                answer.remove(2);
            }
        });
        assert_eq!(chunks.repeats, 1);
        assert_eq!(requests, 4);
    }

    #[test]
    fn silence_is_given_up_on_in_the_end() {
        let job = Download {
            update_id: "upd_1".to_owned(),
            urls: Vec::new(),
            size: 10,
            sha256: Digest::of(b""),
            offset: 0,
        };
        let (mut flash, mut now) = (Flash::default(), Instant::now());
        let mut chunks = Chunks::begin(&job, 0, &mut flash, now);
        let mut asked = 0;
        while let Next::Ask(_) = chunks.overdue(&flash, now) {
            asked += 1;
            now = chunks.due();
        }
        assert_eq!(asked, MAX_STALLS + 1);
    }
}
