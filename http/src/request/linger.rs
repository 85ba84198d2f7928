//! A body that is read to its end even when the answer comes early.
//!
//! When a request is answered before its body has arrived and the connection is closed at once, the client's kernel
//! throws the answer away with the connection. So a body that is dropped unread is emptied in the background for a
//! bounded time, in which a client sees the answer and stops, or finishes and reads it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

/// Longest that a body is emptied.
const LINGER_TIME: Duration = Duration::from_secs(30);
/// Longest pause of the client in that time.
const LINGER_PAUSE: Duration = Duration::from_secs(5);
/// Most bytes that are thrown away: twice the largest image.
const LINGER_BYTES: u64 = 2 * device_ota_domain::firmware::MAX_IMAGE_BYTES;

/// The body of a request, emptied when it is dropped too early.
#[derive(Debug)]
pub(crate) struct Lingering {
    body: Option<Incoming>,
    /// The client asked whether to send the body and has not been told to: nothing is on its way.
    unasked: bool,
}

impl Lingering {
    pub(crate) fn new(headers: &HeaderMap, body: Incoming) -> Self {
        let unasked = headers
            .get(EXPECT)
            .is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self {
            body: Some(body),
            unasked,
        }
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.unasked = false;
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !self.unasked
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(LINGER_TIME, empty(body)));
        }
    }
}

/// Reads and throws away, until the end, an error, a pause or the bound.
async fn empty(mut body: Incoming) {
    let mut thrown_away = 0;
    while thrown_away < LINGER_BYTES {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match tokio::time::timeout(LINGER_PAUSE, next).await {
            Ok(Some(Ok(frame))) => {
                thrown_away += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            _ => return,
        }
    }
}
