//! Reading an object: a stream of pieces for downloads, single pieces for chunks.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectStream};
use futures_util::stream;

use super::layout::Layout;
use super::{blocking, failed};

/// Bytes of a piece of a stream; a reader holds one.
const PIECE_BYTES: u64 = 256 * 1024;

/// A file and how much of it is still to be read.
pub(super) struct Reader {
    file: File,
    left: u64,
}

impl Reader {
    /// Opens the object at the start of the range.
    pub(super) fn open(
        layout: &Layout,
        name: &str,
        range: Range<u64>,
    ) -> Result<Self, ObjectError> {
        let mut file = open(layout, name)?;
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        Ok(Self {
            file,
            left: range.end.saturating_sub(range.start),
        })
    }

    /// The range, piece by piece. An object that ends before the range does is an error: it is not what was asked.
    pub(super) fn into_stream(self) -> ObjectStream {
        Box::pin(stream::try_unfold(self, |reader| async move {
            if reader.left == 0 {
                return Ok(None);
            }
            blocking(move || reader.next().map_err(failed))
                .await
                .map(Some)
        }))
    }

    fn next(mut self) -> io::Result<(Bytes, Self)> {
        let piece = read_piece(&mut self.file, self.left.min(PIECE_BYTES))?;
        if piece.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the object is shorter than it should be",
            ));
        }
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok((piece, self))
    }
}

/// Up to `length` bytes at `offset`.
pub(super) fn read_at(
    layout: &Layout,
    name: &str,
    offset: u64,
    length: usize,
) -> Result<Bytes, ObjectError> {
    let mut file = open(layout, name)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    read_piece(&mut file, length as u64).map_err(failed)
}

fn open(layout: &Layout, name: &str) -> Result<File, ObjectError> {
    let missing = || ObjectError::Missing(name.to_owned());
    let path = layout.object(name).ok_or_else(missing)?;
    File::open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            missing()
        } else {
            failed(error)
        }
    })
}

/// The next bytes, up to `length`; fewer at the end of the file.
fn read_piece(file: &mut File, length: u64) -> io::Result<Bytes> {
    let mut buffer =
        Vec::with_capacity(usize::try_from(length.min(PIECE_BYTES)).unwrap_or_default());
    file.take(length).read_to_end(&mut buffer)?;
    Ok(buffer.into())
}
