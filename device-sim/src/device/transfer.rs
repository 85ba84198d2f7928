//! The download a device is in, over HTTP in a task of its own or in MQTT chunks that the device
//! asks for.

use std::future::pending;

use bytes::Bytes;
use device_ota_protocol::agent::{Download, Input};
use device_ota_protocol::digest::Digest;
use device_ota_protocol::messages::ErrorCode;
use device_ota_protocol::topics::Up;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Device, Leave};
use crate::chunks::{Chunks, Next};
use crate::download::{self, Event, Means, lock};
use crate::faults::{FailAt, Flaw};

/// Events of a download that may wait for the device.
const QUEUE: usize = 4;
/// At which part of an image the connection is lost, where that is the fault.
const DROP_AT: u64 = 2;

/// A download, if one is under way.
pub(super) enum Transfer {
    None,
    Http(Http),
    Chunks(Box<Chunks>),
}

/// An HTTP download; ends with its handle.
pub(super) struct Http {
    task: JoinHandle<()>,
    events: mpsc::Receiver<Event>,
    done: u64,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Transfer {
    /// The next event of an HTTP download; never, if there is none. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Event {
        match self {
            Self::Http(http) => match http.events.recv().await {
                Some(event) => event,
                None => Event::Failed(ErrorCode::Internal, "the download ended".to_owned()),
            },
            Self::None | Self::Chunks(_) => pending().await,
        }
    }
}

impl Device {
    pub(super) fn start_download(&mut self, job: Download) {
        self.downloaded = true;
        self.ctx.board.totals.downloads.one();
        if self.takes_chunks || job.urls.is_empty() {
            let now = Instant::now();
            let chunks = Chunks::begin(&job, self.chunk_request, &mut lock(&self.flash), now);
            self.transfer = Transfer::Chunks(Box::new(chunks));
            return;
        }
        let (send, events) = mpsc::channel(QUEUE);
        let drop_at = self.drop_next.then_some(job.size / DROP_AT);
        self.drop_next = false;
        let means = Means {
            http: self.ctx.http.clone(),
            gate: self.ctx.gate.clone(),
            speed: self.ctx.habits.speed,
            drop_at,
        };
        let done = job.offset;
        let task = tokio::spawn(download::fetch(job, means, self.flash.clone(), send));
        self.transfer = Transfer::Http(Http { task, events, done });
    }

    pub(super) fn stop_download(&mut self) {
        if let Transfer::Chunks(chunks) = &self.transfer {
            self.chunk_request = chunks.last_request();
        }
        self.transfer = Transfer::None;
    }

    /// Takes an event of an HTTP download.
    pub(super) fn transferred(&mut self, event: Event) {
        if let (Transfer::Http(http), Event::Progress(n) | Event::Ready { size: n, .. }) =
            (&mut self.transfer, &event)
        {
            let new = n.saturating_sub(http.done);
            http.done = *n;
            self.ctx.board.totals.http_bytes.add(new);
        }
        match event {
            Event::Progress(bytes_done) => self.progressed(bytes_done),
            Event::Ready { size, sha256 } => self.fetched(size, sha256),
            Event::Expired => {
                self.stop_download();
                self.feed(Input::UrlsExpired);
            }
            Event::Failed(code, message) => {
                self.stop_download();
                self.feed(Input::DownloadFailed {
                    code,
                    message: &message,
                });
            }
        }
    }

    fn progressed(&mut self, bytes_done: u64) {
        self.feed(Input::Downloaded { bytes_done });
        if self.faults.flaw == Some(Flaw::Fail(FailAt::Downloading)) {
            self.fault_fired();
            self.stop_download();
            self.feed(Input::DownloadFailed {
                code: ErrorCode::DownloadFailed,
                message: "simulated: the bytes cannot be had",
            });
        }
    }

    fn fetched(&mut self, size: u64, sha256: Digest) {
        if self.faults.flaw == Some(Flaw::Fail(FailAt::Downloading)) {
            return self.progressed(size);
        }
        self.stop_download();
        let always = self.faults.flaw == Some(Flaw::Fail(FailAt::Verifying));
        if always {
            self.fault_fired();
        }
        let corrupt = always || std::mem::take(&mut self.corrupt_next);
        let sha256 = if corrupt {
            // What the image with a wrong byte hashes to: anything else than it should.
            Digest::of(sha256.as_bytes())
        } else {
            sha256
        };
        self.feed(Input::Downloaded { bytes_done: size });
        self.feed(Input::ImageReady { size, sha256 });
    }

    /// Takes a chunk.
    pub(super) fn chunk_arrived(&mut self, offset: u64, bytes: Bytes) {
        let Transfer::Chunks(chunks) = &mut self.transfer else {
            return;
        };
        self.ctx.board.totals.chunk_bytes.add(bytes.len() as u64);
        let (next, done) = {
            let mut flash = lock(&self.flash);
            let next = chunks.arrived(offset, bytes, &mut flash, Instant::now());
            (next, flash.len())
        };
        self.go_on_with_chunks(next, done);
    }

    /// Asks again for chunks that did not come.
    pub(super) fn chunks_overdue(&mut self) {
        let Transfer::Chunks(chunks) = &mut self.transfer else {
            return;
        };
        let before = chunks.repeats;
        let (next, done) = {
            let flash = lock(&self.flash);
            (chunks.overdue(&flash, Instant::now()), flash.len())
        };
        let repeats = chunks.repeats - before;
        self.ctx.board.totals.chunk_repeats.add(repeats);
        self.go_on_with_chunks(next, done);
    }

    fn go_on_with_chunks(&mut self, next: Next, done: u64) {
        match next {
            Next::Wait => {}
            Next::Ask(request) => {
                self.say(Up::Chunk, request.to_bytes());
                if done > 0 {
                    self.progressed(done);
                }
                self.perhaps_drop(done);
            }
            Next::Done => {
                let digest = lock(&self.flash).digest();
                self.fetched(done, digest);
            }
            Next::GiveUp => {
                self.stop_download();
                self.feed(Input::DownloadFailed {
                    code: ErrorCode::DownloadFailed,
                    message: "no chunks came",
                });
            }
        }
    }

    /// Loses the link in the middle of an image, where that is the fault.
    fn perhaps_drop(&mut self, done: u64) {
        if self.drop_next && done > 0 {
            self.drop_next = false;
            self.leave = Some((Leave::Lost, Instant::now()));
        }
    }
}
