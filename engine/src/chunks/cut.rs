//! A stream of bytes, cut into chunks.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::TryStreamExt as _;

use crate::ports::{ObjectError, ObjectStream};

/// What is left of a stream. Holds one of its pieces.
pub(super) struct Cut {
    pieces: ObjectStream,
    piece: Bytes,
}

impl Cut {
    pub(super) fn new(pieces: ObjectStream) -> Self {
        let piece = Bytes::new();
        Self { pieces, piece }
    }

    /// The next `length` bytes, in memory of their own: what waits for a device keeps no whole piece. An error when the stream
    /// ends before.
    pub(super) async fn next(&mut self, length: usize) -> Result<Bytes, ObjectError> {
        let mut chunk = BytesMut::with_capacity(length);
        while chunk.len() < length {
            if self.piece.is_empty() {
                let piece = self.pieces.try_next().await?;
                self.piece = piece.ok_or_else(|| {
                    ObjectError::Unavailable("an image is shorter than it should be".into())
                })?;
            }
            let part = self.piece.len().min(length - chunk.len());
            chunk.extend_from_slice(&self.piece.copy_to_bytes(part));
        }
        Ok(chunk.freeze())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::stream;

    use super::*;

    fn of(pieces: &'static [&'static [u8]]) -> Cut {
        let pieces = pieces.iter().map(|piece| Ok(Bytes::from_static(piece)));
        Cut::new(Box::pin(stream::iter(pieces)))
    }

    #[tokio::test]
    async fn chunks_are_cut_wherever_the_pieces_end() {
        let mut cut = of(&[b"0123", b"", b"4", b"56789abc", b"d"]);
        assert_eq!(cut.next(3).await.unwrap(), "012");
        assert_eq!(cut.next(5).await.unwrap(), "34567");
        assert_eq!(cut.next(2).await.unwrap(), "89");
        assert_eq!(cut.next(4).await.unwrap(), "abcd");
        assert!(cut.next(1).await.is_err(), "it has ended");
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_is_no_chunk() {
        assert!(of(&[b"012"]).next(4).await.is_err());
    }
}
