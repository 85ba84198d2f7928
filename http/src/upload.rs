//! Uploads: a multipart form whose file goes on to the engine piece by piece, never whole in memory (PRD, E1-US1).
//!
//! Whatever is wrong is said as soon as it is known; the rest of the body is then thrown away in the background
//! ([`crate::request::linger`]). An upload that does not reach its end is dropped, and with it all it has written.

mod form;

use device_ota_domain::Role;
use device_ota_domain::firmware::{MAX_IMAGE_BYTES, UploadMetadata};
use device_ota_engine::{Caller, Upload, Uploaded};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::Field;
use utoipa::ToSchema;

use crate::dto;
use crate::dto::firmware::FirmwareDto;
use crate::errors::ApiError;
use crate::request::body::{Body, announced_length};
use crate::request::{Call, json};
use crate::shared::Answer;
use form::{Form, invalid_form};

/// Most bytes of the `metadata` part.
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// Most bytes of the `release` part (PROTOCOL.md, *Signed objects*).
const MAX_RELEASE_BYTES: usize = 16 * 1024;
/// Most bytes of the form beside the image: the other parts, and generous part headers.
const MAX_FORM_BYTES: u64 = 256 * 1024;

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
/// The file is hashed and stored as it comes, never whole in memory. The same image again answers what is there. 16
/// uploads are taken at once, 8 of one subject; beyond that the answer is 503 or 429 `uploads_busy`, and `Retry-After`
/// says when to come back. What comes slower than 64 KiB a second for half a minute ends with 408.
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
    let boundary = boundary(&call.headers)?;
    let _seat = call.shared.seats.upload(by.subject())?;
    let mut form = Form::new(boundary, body);
    let mut parts = Parts::default();
    while let Some(part) = form.next().await? {
        parts.take(&call, &mut form, part).await?;
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
        form: &mut Form,
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

async fn file(call: &Call, form: &mut Form, mut part: Field<'static>) -> Result<Upload, ApiError> {
    let name = part
        .file_name()
        .ok_or_else(|| invalid_form("the part file has no file name"))?;
    let mut upload = call.shared.engine.begin_upload(name).await?;
    while let Some(piece) = form.chunk(&mut part).await? {
        upload.write(piece).await?;
    }
    Ok(upload)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

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
