//! Firmware: uploads that leave all or nothing, and the registry of images.

mod checksums;
pub(crate) mod handover;
pub(crate) mod life;
mod record;

use std::sync::Arc;

use bytes::Bytes;
use device_ota_domain::FirmwareId;
use device_ota_domain::firmware::{
    Firmware, FirmwareFilter, Format, MAX_IMAGE_BYTES, Results, Storage, UploadMetadata,
};
use device_ota_domain::page::Page;
use device_ota_protocol::digest::Digest;
use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::objects::{self, Kind, Release};

use crate::ports::{ObjectError, ObjectWriter, Tx};
use crate::{Caller, Engine, Error, Result};
use checksums::{Hasher, Sums};
pub(crate) use handover::Standing;
pub(crate) use record::Recording;

/// An upload under way. Dropped before [`Upload::finish`], it leaves nothing behind.
pub struct Upload {
    engine: Arc<Engine>,
    format: Format,
    size: u64,
    writer: Box<dyn ObjectWriter>,
    hasher: Hasher,
}

/// What became of an upload.
#[derive(Debug, Clone, PartialEq)]
pub enum Uploaded {
    /// A new record.
    Created(Firmware),
    /// The same bytes under the same name, version and model were there before (PRD, NFR-4).
    Existing(Firmware),
}

impl Engine {
    /// Begins an upload; 400 when the file's suffix is none of PRD FR-1's.
    pub async fn begin_upload(self: &Arc<Self>, file_name: &str) -> Result<Upload> {
        let format = Format::of_file_name(file_name).ok_or_else(|| {
            Error::invalid(
                "unsupported_format",
                "the file's name must end with .bin, .hex, .elf, .tar.gz or .zip",
            )
        })?;
        let writer = self.objects.create().await?;
        Ok(Upload {
            engine: self.clone(),
            format,
            size: 0,
            writer,
            hasher: Hasher::new(),
        })
    }

    /// One firmware, in use or not.
    pub async fn firmware(&self, id: &FirmwareId) -> Result<Firmware> {
        let found = self.store.firmware(id).await?;
        found.ok_or_else(|| Error::not_found("firmware", &id))
    }

    /// One firmware to offer; 409 when it is out of use.
    pub async fn firmware_in_use(&self, id: &FirmwareId) -> Result<Firmware> {
        Ok(self.firmware(id).await?.in_use()?)
    }

    /// Firmware, newest first.
    pub async fn firmware_list(
        &self,
        filter: &FirmwareFilter,
        page: Page,
    ) -> Result<Vec<Firmware>> {
        Ok(self.store.firmware_list(filter, page).await?)
    }

    /// Whether bytes of any firmware lie there.
    pub async fn stores_in(&self, storage: Storage) -> Result<bool> {
        Ok(self.store.storage_is_used(storage).await?)
    }

    /// Removes the objects of uploads that died between their object and its row. Runs at the start, before uploads are
    /// taken. What else no row names stays: the rows may be in another database.
    pub async fn reconcile_objects(&self) -> Result<()> {
        for name in self.objects.unrecorded().await? {
            if self.store.object_is_used(&name).await? {
                self.objects.recorded(&name).await?;
            } else {
                tracing::info!(object.name = %name, "removing the object of an upload that died");
                self.objects.remove(&name).await?;
            }
        }
        Ok(())
    }

    /// 409 when the bytes of an image are gone.
    pub(crate) async fn check_bytes(&self, firmware: &Firmware) -> Result<()> {
        if self.has_bytes(&firmware.sha256).await {
            return Ok(());
        }
        Err(Error::conflict(
            "bytes_missing",
            format!(
                "the bytes of firmware {} are missing from the object store; upload the same file once more",
                firmware.id
            ),
        ))
    }

    /// Whether the bytes of an image are there, as far as the object store can say.
    pub(crate) async fn has_bytes(&self, sha256: &str) -> bool {
        let read = self.objects.read(sha256, 0, 1).await;
        !matches!(read, Err(ObjectError::Missing(_)))
    }
}

impl Upload {
    /// Takes the next bytes; 400 as soon as the image is too large.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.size = grown(self.size, bytes.len())?;
        let hashing = self.hasher.write(bytes.clone());
        let (hashed, written) = futures_util::future::join(hashing, self.writer.write(bytes)).await;
        hashed?;
        Ok(written?)
    }

    /// Ends it: 400 when it is empty, 422 when a given checksum is not the bytes', 409 when other bytes have this
    /// name, version and model. `release` is a release envelope signed elsewhere.
    pub async fn finish(
        self,
        metadata: UploadMetadata,
        release: Option<String>,
        by: &Caller,
    ) -> Result<Uploaded> {
        let Self {
            engine,
            format,
            size,
            writer,
            hasher,
        } = self;
        metadata.check()?;
        if size == 0 {
            return Err(Error::invalid("empty_image", "the image is empty"));
        }
        let sums = hasher.finish().await?;
        let sha256 = hex::encode(sums.sha256);
        compare("checksum_md5", metadata.checksum_md5.as_deref(), &sums.md5)?;
        compare(
            "checksum_sha256",
            metadata.checksum_sha256.as_deref(),
            &sha256,
        )?;
        let known = engine.store.firmware(&metadata.firmware_id()).await?;
        if let Some(known) = known {
            let known = same_image(known, &metadata, &sha256)?;
            return engine.brought_back(writer, known).await;
        }
        let firmware = engine.sign(metadata, format, size, &sums, release, by)?;
        engine.record(writer, firmware, by).await
    }
}

/// The size of an image with so many bytes more; 400 when it is too large (PRD, FR-1).
fn grown(size: u64, more: usize) -> Result<u64> {
    let size = size + more as u64;
    if size > MAX_IMAGE_BYTES {
        return Err(Error::invalid(
            "image_too_large",
            format!("the image is larger than {MAX_IMAGE_BYTES} bytes, the most that is taken"),
        ));
    }
    Ok(size)
}

fn compare(field: &str, given: Option<&str>, found: &str) -> Result<()> {
    match given {
        Some(given) if !given.eq_ignore_ascii_case(found) => Err(Error::unprocessable(
            "checksum_mismatch",
            format!("{field} is {given} but the uploaded bytes have {found}; nothing was stored"),
        )),
        _ => Ok(()),
    }
}

/// The record that is there already, when it is of this very image.
fn same_image(known: Firmware, given: &UploadMetadata, sha256: &str) -> Result<Firmware> {
    let metadata = &known.metadata;
    let what = |metadata: &UploadMetadata| {
        let (name, version, model) = (&metadata.name, &metadata.version, &metadata.device_model);
        format!("{name} {version} for {model}")
    };
    // Their id is made of all three in one text (PRD, E1-US1 AC4), which two of them may share.
    if (&metadata.name, &metadata.version, &metadata.device_model)
        != (&given.name, &given.version, &given.device_model)
    {
        let (there, new) = (what(metadata), what(given));
        return Err(Error::conflict(
            "other_firmware",
            format!("{new} would have the id of {there}; give it another name"),
        ));
    }
    let there = what(metadata);
    let known = known.in_use()?;
    if known.sha256 == sha256 {
        return Ok(known);
    }
    Err(Error::conflict(
        "other_content",
        format!("{there} exists with other content; give the new image a new version"),
    ))
}

impl Engine {
    fn sign(
        &self,
        mut metadata: UploadMetadata,
        format: Format,
        size: u64,
        sums: &Sums,
        signed_elsewhere: Option<String>,
        by: &Caller,
    ) -> Result<Firmware> {
        let now = self.clock.now();
        let expected = release(&metadata, format, size, sums, now);
        let envelope = if let Some(text) = signed_elsewhere {
            self.check_release(&text, &expected)?
        } else {
            let key = self.keyring.release().ok_or_else(|| {
                Error::invalid(
                    "release_missing",
                    "this service holds no release key; send a release envelope signed elsewhere \
                     in the form part `release`",
                )
            })?;
            objects::seal(&expected, key).map_err(|error| Error::Internal(Box::new(error)))?
        };
        let opened = objects::open::<Release>(&envelope, self.keyring.root());
        let (_, payload) = opened.map_err(|error| Error::Internal(Box::new(error)))?;
        let (sha256, md5) = (hex::encode(sums.sha256), sums.md5.clone());
        metadata.checksum_sha256 = Some(sha256.clone());
        metadata.checksum_md5 = Some(md5.clone());
        Ok(Firmware {
            id: metadata.firmware_id(),
            metadata,
            format,
            size,
            sha256,
            md5,
            release: String::from_utf8_lossy(&envelope.to_json()).into_owned(),
            release_sha256: Digest::of(&payload).to_string(),
            download_count: 0,
            results: Results::default(),
            storage: Storage::Local,
            deprecated_at: None,
            created_at: now,
            updated_at: now,
            created_by: by.subject().to_owned(),
        })
    }

    /// A release signed elsewhere must be signed by the release role and say what was uploaded.
    fn check_release(&self, text: &str, expected: &Release) -> Result<Envelope> {
        let envelope = Envelope::from_json(text.as_bytes()).map_err(|error| {
            Error::invalid(
                "release_malformed",
                format!("release is no signed envelope: {error}"),
            )
        })?;
        let (given, _) =
            objects::open::<Release>(&envelope, self.keyring.root()).map_err(|error| {
                Error::unprocessable(
                    "release_refused",
                    format!("release is not acceptable: {error}"),
                )
            })?;
        let expected = Release {
            issued_at: given.issued_at,
            ..expected.clone()
        };
        if given == expected {
            Ok(envelope)
        } else {
            Err(Error::unprocessable(
                "release_mismatch",
                "release does not say what was uploaded; nothing was stored",
            ))
        }
    }
}

/// An image to offer, which nobody takes out of use before the transaction ends.
pub(crate) async fn held(tx: &mut dyn Tx, id: &FirmwareId) -> Result<Firmware> {
    let found = tx.hold_firmware(id).await?;
    let firmware = found.ok_or_else(|| Error::not_found("firmware", &id))?;
    Ok(firmware.in_use()?)
}

fn release(
    metadata: &UploadMetadata,
    format: Format,
    size: u64,
    sums: &Sums,
    now: jiff::Timestamp,
) -> Release {
    Release {
        firmware_id: metadata.firmware_id().to_string(),
        name: metadata.name.clone(),
        version: metadata.version.clone(),
        security_version: metadata.security_version.into(),
        device_model: metadata.device_model.clone(),
        manufacturer: metadata.manufacturer.clone(),
        hw_revisions: metadata.hw_revisions.clone(),
        format: format.name().to_owned(),
        size,
        sha256: Digest::from_bytes(sums.sha256),
        kind: if metadata.is_security_update {
            Kind::Security
        } else {
            Kind::Feature
        },
        issued_at: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_have_every_byte_of_the_limit_and_not_one_more() {
        let most = |more| grown(MAX_IMAGE_BYTES - 7, more).map_err(|error| error.code());
        assert_eq!(most(7), Ok(MAX_IMAGE_BYTES));
        assert_eq!(most(8), Err("image_too_large"));
    }
}
