//! The body as a stream of bytes, and bodies read whole within a bound of bytes and time.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use warp::{Filter, Rejection};

use crate::errors::ApiError;

/// Longest that a body which is read whole may take to arrive.
const WHOLE_BODY_TIME: Duration = Duration::from_secs(30);

/// A request's body.
pub(crate) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// Takes the body.
pub(crate) fn body() -> impl Filter<Extract = (Body,), Error = Rejection> + Copy {
    warp::body::stream().map(|stream| -> Body { Box::pin(plain(stream)) })
}

fn plain<B: bytes::Buf>(
    stream: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> impl Stream<Item = Result<Bytes, warp::Error>> + Send {
    stream.map(|piece| piece.map(|mut piece| piece.copy_to_bytes(piece.remaining())))
}

/// The length that the client announces, if it does.
pub(crate) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body of at most `limit` bytes: 413 when there is more (at once, when it is announced), 408 when it does
/// not arrive in time.
pub(crate) async fn read_whole(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Bytes, ApiError> {
    if announced_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let read = tokio::time::timeout(WHOLE_BODY_TIME, collect(body, limit)).await;
    let late = "the request's body did not arrive in time";
    read.unwrap_or_else(|_| Err(ApiError::too_slow(late)))
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| broken_off())?;
        if piece.len() > limit - whole.len() {
            return Err(ApiError::too_large(limit));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// The client went away or broke the protocol: nobody reads this answer but the log.
pub(crate) fn broken_off() -> ApiError {
    ApiError::invalid("body_broken_off", "the request's body broke off")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::stream;

    use super::*;

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        Box::pin(stream::iter(pieces))
    }

    async fn status(limit: usize, headers: &HeaderMap, body: Body) -> u16 {
        read_whole(headers, body, limit)
            .await
            .map_or_else(|error| error.render("r").status().as_u16(), |_| 200)
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_no_further() {
        let none = HeaderMap::new();
        assert_eq!(
            read_whole(&none, pieces(&["ab", "c"]), 3).await.unwrap(),
            "abc"
        );
        assert_eq!(status(3, &none, pieces(&["ab", "cd"])).await, 413);
        assert_eq!(status(0, &none, pieces(&[])).await, 200);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_unread() {
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, 4.into())]);
        let never = Box::pin(stream::pending());
        assert_eq!(status(3, &headers, never).await, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        assert_eq!(
            status(3, &HeaderMap::new(), Box::pin(stream::pending())).await,
            408
        );
    }
}
