//! Firmware: what an image is, and what may be uploaded.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::campaign::Tally;
use crate::change::{given, set};
use crate::device::{RegistrationError, text_ok};
use crate::ids::FirmwareId;

/// Largest image, in bytes (PRD, FR-1: 500 MB).
pub const MAX_IMAGE_BYTES: u64 = 500 * 1_000_000;

/// Formats an image may come in (PRD, FR-1), told by the suffix of the file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Format {
    /// `.bin`
    #[serde(rename = "bin")]
    Bin,
    /// `.hex`
    #[serde(rename = "hex")]
    Hex,
    /// `.elf`
    #[serde(rename = "elf")]
    Elf,
    /// `.tar.gz`
    #[serde(rename = "tar.gz")]
    TarGz,
    /// `.zip`
    #[serde(rename = "zip")]
    Zip,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Bin, Self::Hex, Self::Elf, Self::TarGz, Self::Zip];

    /// The name without the dot.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bin => "bin",
            Self::Hex => "hex",
            Self::Elf => "elf",
            Self::TarGz => "tar.gz",
            Self::Zip => "zip",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The format that a file's name ends with; upper or lower case.
    ///
    /// ```
    /// # use device_ota_domain::firmware::Format;
    /// assert_eq!(Format::of_file_name("u-boot.BIN"), Some(Format::Bin));
    /// assert_eq!(Format::of_file_name("rootfs.tar.gz"), Some(Format::TarGz));
    /// assert_eq!(Format::of_file_name("setup.exe"), None);
    /// assert_eq!(Format::of_file_name(".bin"), None);
    /// ```
    pub fn of_file_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|format| {
            name.strip_suffix(format.name())
                .is_some_and(|stem| stem.len() > 1 && stem.ends_with('.'))
        })
    }
}

/// Where an image's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In the local folder of the process that took the upload.
    Local,
    /// In the bucket that all processes share.
    S3,
}

impl Storage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Local, Self::S3];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::S3 => "s3",
        }
    }

    /// The storage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|storage| storage.name() == name)
    }
}

/// Most hardware revisions of one image; what a signed release may name.
pub const MAX_HW_REVISIONS: usize = 32;

/// What the uploader says of an image (PRD, E1-US1; DESIGN.md, *HTTP*).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadMetadata {
    /// Product name.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// Semantic version.
    #[schema(min_length = 1, max_length = 128, examples("2.1.0"))]
    pub version: String,
    /// The model it runs on.
    #[schema(min_length = 1, max_length = 128)]
    pub device_model: String,
    /// Maker; devices compare it with their own.
    #[schema(min_length = 1, max_length = 128)]
    pub manufacturer: String,
    /// Free text.
    #[serde(default)]
    #[schema(max_length = 16384)]
    pub description: Option<String>,
    /// Not for everybody.
    #[serde(default)]
    pub is_beta: bool,
    /// Fixes a vulnerability.
    #[serde(default)]
    pub is_security_update: bool,
    /// Devices never go below the highest they confirmed.
    #[serde(default)]
    pub security_version: u32,
    /// Hardware revisions it runs on; empty: all.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub hw_revisions: Vec<String>,
    /// A device with less battery waits.
    #[serde(default)]
    #[schema(maximum = 100)]
    pub min_battery_percent: Option<u8>,
    /// A device with less free storage waits.
    #[serde(default)]
    #[schema(minimum = 0)]
    pub min_free_storage_bytes: Option<i64>,
    /// Free text for people.
    #[serde(default)]
    #[schema(max_length = 16384)]
    pub release_notes: Option<String>,
    /// Checked against the bytes when given.
    #[serde(default)]
    #[schema(pattern = "^[0-9A-Fa-f]{32}$")]
    pub checksum_md5: Option<String>,
    /// Checked against the bytes when given.
    #[serde(default)]
    #[schema(pattern = "^[0-9A-Fa-f]{64}$")]
    pub checksum_sha256: Option<String>,
}

/// Longest free text of an upload (description, release notes), in bytes.
pub const MAX_NOTES_BYTES: usize = 16 * 1024;

/// Why upload metadata were refused; names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A plain text is out of bounds.
    #[error(transparent)]
    Text(#[from] RegistrationError),
    /// `version` is no semantic version.
    #[error("version {0:?} is not a semantic version such as 2.1.0")]
    Version(String),
    /// A free text is over [`MAX_NOTES_BYTES`].
    #[error("{0} must be at most {MAX_NOTES_BYTES} bytes")]
    Notes(&'static str),
    /// A number is out of its range.
    #[error("{0} must be {1}")]
    Range(&'static str, &'static str),
    /// A given checksum is not hex of the right length.
    #[error("{0} must be {1} hex digits")]
    Checksum(&'static str, usize),
}

impl UploadMetadata {
    /// Checks every field's form.
    pub fn check(&self) -> Result<(), MetadataError> {
        text_ok("name", &self.name)?;
        text_ok("device_model", &self.device_model)?;
        text_ok("version", &self.version)?;
        text_ok("manufacturer", &self.manufacturer)?;
        semver::Version::parse(&self.version)
            .map_err(|_| MetadataError::Version(self.version.clone()))?;
        self.hw_revisions
            .iter()
            .try_for_each(|r| text_ok("hw_revisions", r))?;
        if self.hw_revisions.len() > MAX_HW_REVISIONS {
            return Err(MetadataError::Range("hw_revisions", "a list of at most 32"));
        }
        if self.min_battery_percent.is_some_and(|p| p > 100) {
            return Err(MetadataError::Range("min_battery_percent", "0 to 100"));
        }
        if self.min_free_storage_bytes.is_some_and(|b| b < 0) {
            return Err(MetadataError::Range("min_free_storage_bytes", "0 or more"));
        }
        let long = |text: &Option<String>| text.as_ref().is_some_and(|t| t.len() > MAX_NOTES_BYTES);
        if long(&self.description) {
            return Err(MetadataError::Notes("description"));
        }
        if long(&self.release_notes) {
            return Err(MetadataError::Notes("release_notes"));
        }
        checksum_ok("checksum_md5", self.checksum_md5.as_deref(), 32)?;
        checksum_ok("checksum_sha256", self.checksum_sha256.as_deref(), 64)
    }

    /// The deterministic id (PRD, FR-3).
    pub fn firmware_id(&self) -> FirmwareId {
        FirmwareId::of(&self.name, &self.version, &self.device_model)
    }
}

fn checksum_ok(
    field: &'static str,
    text: Option<&str>,
    digits: usize,
) -> Result<(), MetadataError> {
    match text {
        Some(t) if t.len() != digits || !t.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Err(MetadataError::Checksum(field, digits))
        }
        _ => Ok(()),
    }
}

/// An uploaded image. `metadata`'s checksums are filled in from the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Firmware {
    /// Deterministic id.
    pub id: FirmwareId,
    /// What the uploader said; both checksums are set, lower-case hex, calculated from the bytes.
    pub metadata: UploadMetadata,
    /// Format, from the file's name.
    pub format: Format,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, lower-case hex; also the name of the object in the store.
    pub sha256: String,
    /// MD5 of the bytes, lower-case hex.
    pub md5: String,
    /// The signed release, a DSSE envelope as JSON text.
    pub release: String,
    /// SHA-256 of the release payload's bytes, lower-case hex; assignments name it.
    pub release_sha256: String,
    /// Downloads begun.
    pub download_count: u64,
    /// Updates to it that completed or failed, whoever asked for them.
    pub results: Results,
    /// Where its bytes lie.
    pub storage: Storage,
    /// No longer offered; kept for the record (PRD, FR-20).
    pub deprecated_at: Option<Timestamp>,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// Who uploaded it.
    pub created_by: String,
}

/// What may be changed of an image: what devices are not told with a signature. What is left out stays as it is, `null` clears.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FirmwareChange {
    /// Free text.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 16384)]
    pub description: Option<Option<String>>,
    /// Free text for people.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 16384)]
    pub release_notes: Option<Option<String>>,
    /// Not for everybody.
    #[serde(default)]
    pub is_beta: Option<bool>,
    /// A device with less battery waits: at once where it is updated by itself, and in campaigns that are created from now on.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u8>, maximum = 100)]
    pub min_battery_percent: Option<Option<u8>>,
    /// A device with less free storage waits; likewise.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    pub min_free_storage_bytes: Option<Option<i64>>,
}

/// Why an image is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {version} for {device_model} was deprecated; upload it under a new version")]
pub struct Deprecated {
    name: String,
    version: String,
    device_model: String,
}

impl Firmware {
    /// The image, unless it is out of use.
    pub fn in_use(self) -> Result<Self, Deprecated> {
        if self.deprecated_at.is_none() {
            return Ok(self);
        }
        let UploadMetadata {
            name,
            version,
            device_model,
            ..
        } = self.metadata;
        Err(Deprecated {
            name,
            version,
            device_model,
        })
    }

    /// Admin: take it out of use. What happens to those who use it is not decided here.
    pub fn deprecate(self, now: Timestamp) -> Result<Self, Deprecated> {
        let firmware = self.in_use()?;
        Ok(Self {
            deprecated_at: Some(now),
            updated_at: now,
            ..firmware
        })
    }

    /// Admin: change what is not part of the signed release.
    pub fn change(self, change: FirmwareChange, now: Timestamp) -> Result<Self, Deprecated> {
        let mut firmware = self.in_use()?;
        let said = &mut firmware.metadata;
        set(&mut said.description, change.description);
        set(&mut said.release_notes, change.release_notes);
        set(&mut said.is_beta, change.is_beta);
        set(&mut said.min_battery_percent, change.min_battery_percent);
        set(
            &mut said.min_free_storage_bytes,
            change.min_free_storage_bytes,
        );
        firmware.updated_at = now;
        Ok(firmware)
    }
}

/// How updates to an image ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Results {
    /// Updates that completed.
    pub completed: u64,
    /// Updates that failed.
    pub failed: u64,
}

impl Results {
    /// Share of completed ones among those that ended with a result, in percent; 0 before the first (PRD, E1-US2).
    pub fn success_percent(&self) -> f64 {
        let tally = Tally {
            completed: self.completed,
            failed: self.failed,
            ..Tally::default()
        };
        tally.success_percent().unwrap_or(0.0)
    }
}

/// Filters of a firmware list (PRD, FR-17); `None` takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FirmwareFilter {
    /// Exact model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_model: Option<String>,
    /// Exact manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Beta or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_beta: Option<bool>,
    /// Security update or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_security_update: Option<bool>,
    /// Those that are out of use, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub include_deprecated: bool,
}
