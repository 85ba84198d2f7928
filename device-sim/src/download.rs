//! Fetching an image over HTTP by ranges, hashing it as it arrives, and going on after every
//! interruption from the byte where it stopped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_protocol::agent::Download;
use device_ota_protocol::digest::Digest;
use device_ota_protocol::messages::ErrorCode;
use reqwest::StatusCode;
use reqwest::header::{RANGE, RETRY_AFTER};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Tries in a row that bring no byte before a download is given up: with the pauses between them
/// about a minute, longer than the service takes to restart.
const MAX_TRIES: u32 = 15;
/// Pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause because the server asks for one.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Longest wait for the next bytes.
const STALLED: Duration = Duration::from_secs(30);
/// Progress events a download: each costs the device a look at its state machine.
const PROGRESS_STEPS: u64 = 20;

/// What stands in the slot that is being written: a running hash in place of the bytes, so that
/// thousands of images fit into memory. It survives restarts of the device, as flash does.
#[derive(Debug, Clone)]
pub struct Flash {
    sha256: Option<Digest>,
    bytes: u64,
    hasher: Sha256,
}

impl Default for Flash {
    fn default() -> Self {
        Self {
            sha256: None,
            bytes: 0,
            hasher: Sha256::new(),
        }
    }
}

impl Flash {
    /// Makes room for an image and returns where to go on: where it stopped if it holds a part of
    /// the same image and `offset` is not zero, else at the start.
    pub fn begin(&mut self, sha256: Digest, offset: u64) -> u64 {
        if self.sha256 != Some(sha256) || offset == 0 {
            *self = Self {
                sha256: Some(sha256),
                ..Self::default()
            };
        }
        self.bytes
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Digest of what is written.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    /// Forgets the bytes but not the image they belong to.
    fn rewind(&mut self) {
        self.hasher = Sha256::new();
        self.bytes = 0;
    }
}

/// Flash that a device and its download share.
pub type SharedFlash = Arc<Mutex<Flash>>;

/// Locks flash; a download that panicked leaves it as it was.
pub fn lock(flash: &SharedFlash) -> MutexGuard<'_, Flash> {
    flash.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a download stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// So many bytes are written.
    Progress(u64),
    /// All bytes are written.
    Ready {
        /// How many.
        size: u64,
        /// What they hash to.
        sha256: Digest,
    },
    /// The URL serves no longer.
    Expired,
    /// It is over without an image.
    Failed(ErrorCode, String),
}

/// What a download needs beside what the agent says.
#[derive(Debug, Clone)]
pub struct Means {
    /// The client, shared by the fleet.
    pub http: reqwest::Client,
    /// Bounds the transfers of the whole fleet.
    pub gate: Arc<Semaphore>,
    /// Most bytes a second.
    pub speed: Option<u64>,
    /// Where to lose the connection, once.
    pub drop_at: Option<u64>,
}

/// Fetches an image into flash and tells how it stands until it is over. Ends early, leaving flash
/// as far as it came, when nobody listens any more or the task is aborted.
pub async fn fetch(
    job: Download,
    mut means: Means,
    flash: SharedFlash,
    events: mpsc::Sender<Event>,
) {
    lock(&flash).begin(job.sha256, job.offset);
    let mut tries = 0;
    let end = loop {
        let before = lock(&flash).len();
        match transfer(&job, &mut means, &flash, &events, tries).await {
            Ok(()) => {
                let flash = lock(&flash);
                break Event::Ready {
                    size: flash.len(),
                    sha256: flash.digest(),
                };
            }
            Err(Broken::For(event)) => break event,
            Err(Broken::Off(why)) => {
                tries = if lock(&flash).len() > before {
                    1
                } else {
                    tries + 1
                };
                if tries >= MAX_TRIES {
                    break Event::Failed(ErrorCode::DownloadFailed, why);
                }
                tracing::debug!(update.id = job.update_id, why, "download interrupted");
                sleep(pause(tries)).await;
            }
            // No failure: the attempt's own deadline bounds it.
            Err(Broken::Busy(wait)) => sleep(wait).await,
        }
    };
    // The device may have lost interest.
    let _ = events.send(end).await;
}

/// Why a transfer ended before the image did.
enum Broken {
    /// Worth another try.
    Off(String),
    /// The server has no time yet, and says when it may have.
    Busy(Duration),
    /// Not to be mended by trying again.
    For(Event),
}

impl From<reqwest::Error> for Broken {
    fn from(error: reqwest::Error) -> Self {
        // Without the URL: it is a credential.
        Self::Off(error.without_url().to_string())
    }
}

fn pause(tries: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.saturating_pow(tries.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
}

async fn transfer(
    job: &Download,
    means: &mut Means,
    flash: &SharedFlash,
    events: &mpsc::Sender<Event>,
    tries: u32,
) -> Result<(), Broken> {
    let gate = means.gate.clone();
    let _permit = gate.acquire().await;
    let from = lock(flash).len();
    if from == job.size {
        return Ok(());
    }
    let mut response = open(job, means, flash, from, tries).await?;
    let mut pace = Pace::new(means.speed);
    let step = (job.size / PROGRESS_STEPS).max(1);
    let mut told = from / step;
    loop {
        let bytes = match timeout(STALLED, response.chunk()).await {
            Ok(bytes) => bytes?,
            Err(_) => return Err(Broken::Off("the server stopped sending".to_owned())),
        };
        let Some(bytes) = bytes else { break };
        let done = {
            let mut flash = lock(flash);
            flash.write(&bytes);
            flash.len()
        };
        if done > job.size {
            let text = format!("more than {} bytes", job.size);
            return Err(Broken::For(Event::Failed(ErrorCode::SizeMismatch, text)));
        }
        if means.drop_at.is_some_and(|at| done >= at) {
            means.drop_at = None;
            return Err(Broken::Off("connection reset".to_owned()));
        }
        if done / step > told {
            told = done / step;
            if events.send(Event::Progress(done)).await.is_err() {
                return Ok(());
            }
        }
        pace.keep(bytes.len()).await;
    }
    let done = lock(flash).len();
    if done < job.size {
        return Err(Broken::Off(format!("{done} of {} bytes", job.size)));
    }
    Ok(())
}

/// Asks one URL, another one at each try, for what is missing.
async fn open(
    job: &Download,
    means: &Means,
    flash: &SharedFlash,
    from: u64,
    tries: u32,
) -> Result<reqwest::Response, Broken> {
    let urls = job.urls.len().max(1);
    let Some(url) = job.urls.get(tries as usize % urls) else {
        let text = "the offer has no URL".to_owned();
        return Err(Broken::For(Event::Failed(ErrorCode::Unsupported, text)));
    };
    let mut request = means.http.get(url);
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    let response = request.send().await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if from > 0 => Ok(response),
        StatusCode::OK => {
            // The server took no notice of the range.
            lock(flash).rewind();
            Ok(response)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE => {
            Err(Broken::For(Event::Expired))
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            Err(Broken::Busy(retry_after(&response)))
        }
        status => Err(Broken::Off(format!("the server answered {status}"))),
    }
}

/// How long the server wants to be left alone, within reason.
fn retry_after(response: &reqwest::Response) -> Duration {
    let said = response.headers().get(RETRY_AFTER);
    let seconds = said.and_then(|text| text.to_str().ok()?.parse().ok());
    seconds.map_or(LONGEST_PAUSE, |seconds| {
        Duration::from_secs(seconds).min(LONGEST_WAIT)
    })
}

/// Keeps to a number of bytes a second.
struct Pace {
    speed: Option<u64>,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(speed: Option<u64>) -> Self {
        Self {
            speed,
            since: Instant::now(),
            bytes: 0,
        }
    }

    async fn keep(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(speed) = self.speed {
            let micros = self.bytes.saturating_mul(1_000_000) / speed.max(1);
            sleep_until(self.since + Duration::from_micros(micros)).await;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    const IMAGE: &[u8] = &[7; 100_000];

    /// Serves `IMAGE` by ranges, cutting the connection after `cut` bytes each time, and tells
    /// where each request began.
    async fn serve(cut: usize, honour_range: bool) -> (String, mpsc::UnboundedReceiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/image", listener.local_addr().unwrap());
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mut socket = BufReader::new(socket);
                let mut from = 0;
                let mut line = String::new();
                while socket.read_line(&mut line).await.unwrap() > 2 {
                    if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                        from = range.trim().trim_end_matches('-').parse().unwrap();
                    }
                    line.clear();
                }
                tell.send(from).unwrap();
                let (status, start) = if from > 0 && honour_range {
                    ("206 Partial Content", from)
                } else {
                    ("200 OK", 0)
                };
                let rest = IMAGE.get(start..).unwrap();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                    rest.len()
                );
                socket.write_all(head.as_bytes()).await.unwrap();
                let some = rest.get(..cut.min(rest.len())).unwrap();
                socket.write_all(some).await.unwrap();
                socket.flush().await.unwrap();
            }
        });
        (url, told)
    }

    fn job(url: String, offset: u64) -> Download {
        Download {
            update_id: "upd_1".to_owned(),
            urls: vec![url],
            size: IMAGE.len() as u64,
            sha256: Digest::of(IMAGE),
            offset,
        }
    }

    fn means(drop_at: Option<u64>) -> Means {
        Means {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            gate: Arc::new(Semaphore::new(1)),
            speed: None,
            drop_at,
        }
    }

    async fn outcome(job: Download, means: Means, flash: SharedFlash) -> (Event, usize) {
        let (send, mut events) = mpsc::channel(4);
        tokio::spawn(fetch(job, means, flash, send));
        let (mut last, mut steps) = (Event::Expired, 0);
        while let Some(event) = events.recv().await {
            steps += usize::from(matches!(event, Event::Progress(_)));
            last = event;
        }
        (last, steps)
    }

    fn ready() -> Event {
        Event::Ready {
            size: IMAGE.len() as u64,
            sha256: Digest::of(IMAGE),
        }
    }

    #[tokio::test]
    async fn a_download_cut_off_again_and_again_goes_on_where_it_was() {
        let (url, mut told) = serve(30_000, true).await;
        let (end, steps) = outcome(job(url, 0), means(None), SharedFlash::default()).await;
        assert_eq!(end, ready());
        assert!(steps > 2, "{steps} progress events");
        let mut starts = Vec::new();
        while let Ok(start) = told.try_recv() {
            starts.push(start);
        }
        assert_eq!(starts, [0, 30_000, 60_000, 90_000]);
    }

    #[tokio::test]
    async fn a_server_without_ranges_makes_it_begin_anew() {
        let (url, _told) = serve(usize::MAX, false).await;
        let flash = SharedFlash::default();
        lock(&flash).begin(Digest::of(IMAGE), 0);
        lock(&flash).write(b"some of it");
        let (end, _) = outcome(job(url, 10), means(None), flash).await;
        assert_eq!(end, ready());
    }

    #[tokio::test]
    async fn a_server_that_is_busy_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/image", listener.local_addr().unwrap());
        let busy = 2 * MAX_TRIES;
        tokio::spawn(async move {
            for served in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                let mut socket = BufReader::new(socket);
                let mut line = String::new();
                while socket.read_line(&mut line).await.unwrap() > 2 {
                    line.clear();
                }
                let (status, body) = if served < busy {
                    ("503 Service Unavailable\r\nRetry-After: 0", &[][..])
                } else {
                    ("200 OK", IMAGE)
                };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
                );
                socket.write_all(head.as_bytes()).await.unwrap();
                socket.write_all(body).await.unwrap();
            }
        });
        let (end, _) = outcome(job(url, 0), means(None), SharedFlash::default()).await;
        assert_eq!(end, ready());
    }

    #[tokio::test]
    async fn a_reset_in_the_middle_costs_one_more_request_and_no_byte_twice() {
        let (url, mut told) = serve(usize::MAX, true).await;
        let (end, _) = outcome(job(url, 0), means(Some(50_000)), SharedFlash::default()).await;
        assert_eq!(end, ready());
        assert_eq!(told.recv().await, Some(0));
        assert!(told.recv().await.unwrap() >= 50_000);
        assert!(told.try_recv().is_err());
    }
}
