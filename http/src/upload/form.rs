//! The form of an upload, part by part: with a bound on all waiting for the client, and on what is held unparsed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use multer::{Field, Multipart};
use tokio::time::{Instant, timeout};

use crate::errors::ApiError;
use crate::request::body::{Body, broken_off};

/// Longest that the client may keep us waiting, at once or with less than the least rate.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a line must carry, averaged: the largest image then takes 2.2 hours.
const LEAST_BYTES_A_SECOND: u64 = 64 * 1024;
/// Bytes that may lie between the socket and the engine before the parser gets to work on them.
const READ_AHEAD_BYTES: usize = 512 * 1024;
/// Bytes that the parser may hold without finding an end: part headers or a preamble longer than this are refused.
const MAX_UNPARSED_BYTES: usize = 2 * 1024 * 1024;

/// The form, with a bound on all waiting and on all that is held unparsed.
pub(super) struct Form {
    parts: Multipart<'static>,
    flow: Arc<Flow>,
    patience: Patience,
}

/// What the parser's feed tells the form.
#[derive(Default)]
struct Flow {
    /// Bytes that the parser holds.
    unparsed: AtomicUsize,
    /// Bytes that have come since somebody asked.
    come: AtomicU64,
}

impl Form {
    pub(super) fn new(boundary: String, body: Body) -> Self {
        let flow = Arc::<Flow>::default();
        let feed = Feed {
            body,
            flow: Arc::clone(&flow),
            paused: false,
        };
        Self {
            parts: Multipart::new(feed, boundary),
            flow,
            patience: Patience::new(),
        }
    }

    /// The next part; 408 when the client has come too slowly.
    pub(super) async fn next(&mut self) -> Result<Option<Field<'static>>, ApiError> {
        let next = self.patience.wait(self.parts.next_field()).await;
        self.come_in(next)
    }

    /// The next bytes of a part; 408 when the client has come too slowly.
    pub(super) async fn chunk(
        &mut self,
        part: &mut Field<'static>,
    ) -> Result<Option<Bytes>, ApiError> {
        let chunk = self.patience.wait(part.chunk()).await;
        let chunk = self.come_in(chunk)?;
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.flow.unparsed.fetch_sub(length, Ordering::Relaxed);
        Ok(chunk)
    }

    /// A part of at most `limit` bytes, as text.
    pub(super) async fn text(
        &mut self,
        mut part: Field<'static>,
        limit: usize,
    ) -> Result<String, ApiError> {
        let name = part.name().unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        while let Some(piece) = self.chunk(&mut part).await? {
            if bytes.len() + piece.len() > limit {
                return Err(invalid_form(format!(
                    "the part {name} is larger than {limit} bytes"
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        String::from_utf8(bytes).map_err(|_| invalid_form(format!("the part {name} is not UTF-8")))
    }

    fn come_in<T>(&mut self, step: Option<multer::Result<T>>) -> Result<T, ApiError> {
        self.patience
            .earn(self.flow.come.swap(0, Ordering::Relaxed));
        let step = step.ok_or_else(|| {
            ApiError::too_slow(format!(
                "the upload came slower than {LEAST_BYTES_A_SECOND} bytes a second for too long; nothing of it was stored"
            ))
        })?;
        step.map_err(|error| explain(&error))
    }
}

/// How long the client may still keep us waiting: waiting spends it, bytes earn it back. So an upload at the least rate
/// goes on as long as it takes, and one at a trickle ends soon, however its bytes are spread. The time that the disk
/// takes is nobody's fault here and not counted.
struct Patience {
    left: Duration,
}

impl Patience {
    const fn new() -> Self {
        Self { left: PATIENCE }
    }

    /// What comes of a step that waits for the client; `None` when it was too long.
    async fn wait<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let done = timeout(self.left, step).await;
        self.left = self.left.saturating_sub(began.elapsed());
        done.ok()
    }

    fn earn(&mut self, bytes: u64) {
        let micros = bytes.saturating_mul(1_000_000) / LEAST_BYTES_A_SECOND;
        self.left = (self.left + Duration::from_micros(micros)).min(PATIENCE);
    }
}

fn explain(error: &multer::Error) -> ApiError {
    match error {
        multer::Error::StreamReadFailed(cause) if cause.is::<Unparsable>() => {
            invalid_form(cause.to_string())
        }
        multer::Error::StreamReadFailed(_) => broken_off(),
        multer::Error::IncompleteStream | multer::Error::IncompleteFieldData { .. } => {
            invalid_form("the form ends before its last boundary")
        }
        other => invalid_form(format!("the form cannot be read: {other}")),
    }
}

/// Too much came without a boundary or the end of part headers.
#[derive(Debug)]
struct Unparsable;

impl std::fmt::Display for Unparsable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the form's part headers are too long")
    }
}

impl std::error::Error for Unparsable {}

/// Feeds the parser, which takes all it can get, no more than it works off.
struct Feed {
    body: Body,
    flow: Arc<Flow>,
    paused: bool,
}

impl Stream for Feed {
    type Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let unparsed = self.flow.unparsed.load(Ordering::Relaxed);
        if unparsed > MAX_UNPARSED_BYTES {
            return Poll::Ready(Some(Err(Box::new(Unparsable))));
        }
        if unparsed >= READ_AHEAD_BYTES && !self.paused {
            // One pause in which the parser hands on what it has; if it cannot, the next call reads on.
            self.paused = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.paused = false;
        let polled = self.body.as_mut().poll_next(context);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.flow.unparsed.fetch_add(piece.len(), Ordering::Relaxed);
            self.flow
                .come
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        polled.map(|piece| piece.map(|piece| piece.map_err(Into::into)))
    }
}

/// 400.
pub(super) fn invalid_form(detail: impl Into<String>) -> ApiError {
    ApiError::invalid("invalid_form", detail)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    fn form(pieces: impl IntoIterator<Item = Bytes, IntoIter: Send + 'static>) -> Form {
        Form::new("X".to_owned(), Box::pin(stream::iter(pieces).map(Ok)))
    }

    fn whole(parts: &[(&str, &str)]) -> Bytes {
        let part = |(name, text): &(&str, &str)| {
            format!(
                "--X\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f.bin\"\r\n\r\n{text}\r\n"
            )
        };
        (parts.iter().map(part).collect::<String>() + "--X--\r\n").into()
    }

    #[tokio::test]
    async fn a_large_part_comes_through_in_pieces_however_it_is_cut() {
        let image: String = (0..300_000)
            .map(|n| char::from(b'a' + u8::try_from(n / 7 % 23).unwrap()))
            .collect();
        let bytes = whole(&[("file", &image), ("metadata", "{}")]);
        for size in [7, 4_096, 400_000] {
            let pieces: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let mut form = form(pieces);
            let mut part = form.next().await.unwrap().unwrap();
            let mut got = Vec::new();
            while let Some(piece) = form.chunk(&mut part).await.unwrap() {
                got.extend_from_slice(&piece);
            }
            drop(part);
            assert!(got == image.as_bytes(), "in pieces of {size}");
            let part = form.next().await.unwrap().unwrap();
            assert_eq!(form.text(part, 2).await.unwrap(), "{}");
            assert!(form.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_part_over_its_limit_is_refused() {
        let mut form = form([whole(&[("metadata", "{\"a\": 1}")])]);
        let part = form.next().await.unwrap().unwrap();
        let error = form.text(part, 4).await.unwrap_err();
        assert_eq!(error.detail(), "the part metadata is larger than 4 bytes");
    }

    #[tokio::test]
    async fn part_headers_without_end_are_refused_in_bounded_memory() {
        let start =
            Bytes::from_static(b"--X\r\nContent-Disposition: form-data; name=\"file\"\r\nX-Long: ");
        let endless =
            std::iter::once(start).chain(std::iter::repeat(Bytes::from(vec![b'x'; 64 * 1024])));
        let error = form(endless).next().await.unwrap_err();
        assert_eq!(error.detail(), "the form's part headers are too long");
    }

    /// A form whose file comes in pieces of this size, each after a pause of a second, and what its upload ends with.
    async fn upload(piece: usize, seconds: usize) -> Result<usize, ApiError> {
        let head =
            "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\r\n";
        let pieces = stream::repeat(Bytes::from(vec![b'x'; piece])).take(seconds);
        let slowly = pieces.then(|piece| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(piece)
        });
        let body = stream::iter([Ok(Bytes::from(head))])
            .chain(slowly)
            .chain(stream::iter([Ok(Bytes::from("\r\n--X--\r\n"))]));
        let mut form = Form::new("X".to_owned(), Box::pin(body));
        let mut part = form.next().await?.unwrap();
        let mut size = 0;
        while let Some(piece) = form.chunk(&mut part).await? {
            size += piece.len();
        }
        Ok(size)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_has_its_time_and_a_trickle_has_not() {
        let seconds = 20 * 60;
        assert_eq!(
            upload(64 * 1024, seconds).await.unwrap(),
            64 * 1024 * seconds
        );
        for trickle in [1, 60 * 1024] {
            let began = Instant::now();
            let error = upload(trickle, seconds).await.unwrap_err();
            let took = began.elapsed();
            assert_eq!(
                error.detail(),
                "the upload came slower than 65536 bytes a second for too long; nothing of it was stored"
            );
            assert_eq!(error.render("r").status(), 408);
            assert!(took < Duration::from_mins(10), "{trickle}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_forgiven_and_does_not_count_twice() {
        let mut patience = Patience::new();
        assert!(
            patience
                .wait(tokio::time::sleep(PATIENCE / 2))
                .await
                .is_some()
        );
        patience.earn(u64::MAX);
        assert_eq!(patience.left, PATIENCE, "nobody saves up time to waste");
        assert!(patience.wait(std::future::pending::<()>()).await.is_none());
    }

    #[tokio::test]
    async fn a_form_that_breaks_off_is_no_form() {
        let cut = whole(&[("file", "abc")]).slice(..70);
        let mut form = form([cut]);
        let mut part = form.next().await.unwrap().unwrap();
        let ended = loop {
            match form.chunk(&mut part).await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(
            ended.unwrap_err().detail(),
            "the form ends before its last boundary"
        );
    }
}
