//! Uploads: a multipart form whose file goes on to the engine piece by piece, never whole in memory (PRD, E1-US1).
//!
//! Whatever is wrong is said as soon as it is known; the rest of the body is then thrown away in the background
//! ([`crate::request::linger`]). An upload that does not reach its end is dropped, and with it all it has written.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::Role;
use device_ota_domain::firmware::{MAX_IMAGE_BYTES, UploadMetadata};
use device_ota_engine::{Caller, Upload, Uploaded};
use futures_util::Stream;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::{Field, Multipart};
use utoipa::ToSchema;

use crate::dto;
use crate::dto::firmware::FirmwareDto;
use crate::errors::ApiError;
use crate::request::body::{Body, announced_length, broken_off};
use crate::request::{Call, json};
use crate::shared::Answer;

/// Most bytes of the `metadata` part.
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// Most bytes of the `release` part (PROTOCOL.md, *Signed objects*).
const MAX_RELEASE_BYTES: usize = 16 * 1024;
/// Most bytes of the form beside the image: the other parts, and generous part headers.
const MAX_FORM_BYTES: u64 = 256 * 1024;
/// Longest pause of the client within the body.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Bytes that may lie between the socket and the engine before the parser gets to work on them.
const READ_AHEAD_BYTES: usize = 512 * 1024;
/// Bytes that the parser may hold without finding an end: part headers or a preamble longer than this are refused.
const MAX_UNPARSED_BYTES: usize = 2 * 1024 * 1024;

/// The form of an upload.
#[derive(ToSchema)]
#[schema(as = UploadForm)]
#[expect(dead_code, reason = "describes the parts, which are read one by one")]
struct FormSchema {
    metadata: UploadMetadata,
    /// The image. Its name ends with .bin, .hex, .elf, .tar.gz or .zip; at most 500 MB.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    file: String,
    /// A release envelope that was signed elsewhere, as JSON; without it the service signs.
    release: Option<String>,
}

/// Upload an image
///
/// The file is hashed and stored as it comes, never whole in memory. The same image again answers what is there.
#[utoipa::path(post, path = "/api/v1/ota/firmware", tag = "firmware",
    request_body(content = FormSchema, content_type = "multipart/form-data"),
    responses(
        (status = 201, description = "The new image", body = FirmwareDto),
        (status = 200, description = "The same image was there already", body = FirmwareDto),
        (status = 409, description = "Another image has this name, version and model"),
        (status = 422, description = "A given checksum is not that of the bytes, or the release is not trusted or about something else"),
    ),
)]
pub(crate) async fn upload(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Uploader)?;
    call.no_query()?;
    if announced_length(&call.headers)
        .is_some_and(|length| length > MAX_IMAGE_BYTES + MAX_FORM_BYTES)
    {
        return Err(ApiError::invalid(
            "image_too_large",
            format!("the upload is larger than {MAX_IMAGE_BYTES} bytes, the most that is taken"),
        ));
    }
    let mut form = Form::new(boundary(&call.headers)?, body);
    let mut parts = Parts::default();
    while let Some(part) = form.next().await? {
        parts.take(&call, &form, part).await?;
    }
    match parts.finish(by).await? {
        Uploaded::Created(firmware) => Ok(dto::created(&FirmwareDto::from(&firmware))),
        Uploaded::Existing(firmware) => Ok(dto::ok(&FirmwareDto::from(&firmware))),
    }
}

fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    multer::parse_boundary(kind).map_err(|_| {
        ApiError::unsupported_media(
            "send the image as multipart/form-data with parts metadata and file",
        )
    })
}

/// The parts that have come so far, in whatever order.
#[derive(Default)]
struct Parts {
    metadata: Option<UploadMetadata>,
    file: Option<Upload>,
    release: Option<String>,
}

impl Parts {
    async fn take(
        &mut self,
        call: &Call,
        form: &Form,
        part: Field<'static>,
    ) -> Result<(), ApiError> {
        let name = part.name().unwrap_or_default().to_owned();
        let again = match name.as_str() {
            "metadata" => self.metadata.is_some(),
            "file" => self.file.is_some(),
            "release" => self.release.is_some(),
            _ => {
                return Err(invalid_form(format!(
                    "{name:?} is no part of an upload; it has metadata, file and release"
                )));
            }
        };
        if again {
            return Err(invalid_form(format!(
                "the part {name} comes more than once"
            )));
        }
        match name.as_str() {
            "metadata" => {
                self.metadata = Some(metadata(&form.text(part, MAX_METADATA_BYTES).await?)?);
            }
            "release" => self.release = Some(form.text(part, MAX_RELEASE_BYTES).await?),
            _ => self.file = Some(file(call, form, part).await?),
        }
        Ok(())
    }

    async fn finish(self, by: &Caller) -> Result<Uploaded, ApiError> {
        let missing = |name| invalid_form(format!("the part {name} is missing"));
        let file = self.file.ok_or_else(|| missing("file"))?;
        let metadata = self.metadata.ok_or_else(|| missing("metadata"))?;
        Ok(file.finish(metadata, self.release, by).await?)
    }
}

/// Reads and checks the metadata at once: nobody should send 500 MB to be told that a comma is missing.
fn metadata(text: &str) -> Result<UploadMetadata, ApiError> {
    let metadata: UploadMetadata = json::parse(text.as_bytes(), "metadata")?;
    metadata.check().map_err(device_ota_engine::Error::from)?;
    Ok(metadata)
}

async fn file(call: &Call, form: &Form, mut part: Field<'static>) -> Result<Upload, ApiError> {
    let name = part
        .file_name()
        .ok_or_else(|| invalid_form("the part file has no file name"))?;
    let mut upload = call.shared.engine.begin_upload(name).await?;
    while let Some(piece) = form.chunk(&mut part).await? {
        upload.write(piece).await?;
    }
    Ok(upload)
}

fn invalid_form(detail: impl Into<String>) -> ApiError {
    ApiError::invalid("invalid_form", detail)
}

/// The form, with a bound on every wait and on all that is held unparsed.
struct Form {
    parts: Multipart<'static>,
    unparsed: Arc<AtomicUsize>,
}

impl Form {
    fn new(boundary: String, body: Body) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let feed = Feed {
            body,
            unparsed: Arc::clone(&unparsed),
            paused: false,
        };
        Self {
            parts: Multipart::new(feed, boundary),
            unparsed,
        }
    }

    async fn next(&mut self) -> Result<Option<Field<'static>>, ApiError> {
        in_time(self.parts.next_field()).await
    }

    async fn chunk(&self, part: &mut Field<'static>) -> Result<Option<Bytes>, ApiError> {
        let chunk = in_time(part.chunk()).await?;
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.unparsed.fetch_sub(length, Ordering::Relaxed);
        Ok(chunk)
    }

    async fn text(&self, mut part: Field<'static>, limit: usize) -> Result<String, ApiError> {
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
}

async fn in_time<T>(step: impl Future<Output = multer::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(MAX_PAUSE, step).await {
        Ok(done) => done.map_err(|error| explain(&error)),
        Err(_) => Err(ApiError::too_slow()),
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
    unparsed: Arc<AtomicUsize>,
    paused: bool,
}

impl Stream for Feed {
    type Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let unparsed = self.unparsed.load(Ordering::Relaxed);
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
            self.unparsed.fetch_add(piece.len(), Ordering::Relaxed);
        }
        polled.map(|piece| piece.map(|piece| piece.map_err(Into::into)))
    }
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

    #[test]
    fn metadata_are_checked_before_the_file_is_read() {
        let detail = |text: &str| metadata(text).unwrap_err().detail().to_owned();
        assert!(detail("{").starts_with("metadata is not valid JSON"));
        assert!(
            detail(r#"{"name":"n","version":"x","device_model":"m","manufacturer":"a"}"#)
                .contains("semantic version")
        );
    }
}
