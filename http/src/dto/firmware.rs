//! Firmware (PRD, E1; appendix 1).

use device_ota_domain::firmware::{Format, Storage};
use device_ota_domain::{Firmware, FirmwareId};
use device_ota_engine::DownloadGrant;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::{names, round};

/// An image as the registry shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Firmware)]
pub(crate) struct FirmwareDto<'a> {
    firmware_id: &'a FirmwareId,
    name: &'a str,
    version: &'a str,
    description: Option<&'a str>,
    device_model: &'a str,
    manufacturer: &'a str,
    #[schema(value_type = Format)]
    format: &'static str,
    file_size: u64,
    file_url: String,
    checksum_md5: &'a str,
    checksum_sha256: &'a str,
    is_beta: bool,
    is_security_update: bool,
    security_version: u32,
    hw_revisions: &'a [String],
    min_battery_percent: Option<u8>,
    min_free_storage_bytes: Option<i64>,
    release_notes: Option<&'a str>,
    /// `local` while it waits to be moved to the bucket, when there is one.
    #[schema(value_type = Storage)]
    storage: &'static str,
    download_count: u64,
    success_rate: f64,
    created_at: Timestamp,
    updated_at: Timestamp,
    created_by: &'a str,
    #[schema(schema_with = statuses)]
    status: &'static str,
    /// Since when it is out of use.
    deprecated_at: Option<Timestamp>,
}

/// Whether an image is in use, or out of it.
const STATUSES: [&str; 2] = ["active", "deprecated"];

fn statuses() -> Object {
    names(STATUSES)
}

impl<'a> From<&'a Firmware> for FirmwareDto<'a> {
    fn from(firmware: &'a Firmware) -> Self {
        let metadata = &firmware.metadata;
        Self {
            firmware_id: &firmware.id,
            name: &metadata.name,
            version: &metadata.version,
            description: metadata.description.as_deref(),
            device_model: &metadata.device_model,
            manufacturer: &metadata.manufacturer,
            format: firmware.format.name(),
            file_size: firmware.size,
            file_url: format!("/api/v1/firmware/{}/download", firmware.id),
            checksum_md5: &firmware.md5,
            checksum_sha256: &firmware.sha256,
            is_beta: metadata.is_beta,
            is_security_update: metadata.is_security_update,
            security_version: metadata.security_version,
            hw_revisions: &metadata.hw_revisions,
            min_battery_percent: metadata.min_battery_percent,
            min_free_storage_bytes: metadata.min_free_storage_bytes,
            release_notes: metadata.release_notes.as_deref(),
            storage: firmware.storage.name(),
            download_count: firmware.download_count,
            success_rate: round(firmware.results.success_percent()),
            created_at: firmware.created_at,
            updated_at: firmware.updated_at,
            created_by: &firmware.created_by,
            status: if firmware.deprecated_at.is_some() {
                STATUSES[1]
            } else {
                STATUSES[0]
            },
            deprecated_at: firmware.deprecated_at,
        }
    }
}

/// What never changes of an image; beside updates, which name it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct FirmwareRef {
    firmware_id: FirmwareId,
    name: String,
    version: String,
    device_model: String,
    manufacturer: String,
    file_size: u64,
    checksum_md5: String,
    checksum_sha256: String,
}

impl FirmwareRef {
    pub(crate) fn of(firmware: &Firmware) -> Self {
        let metadata = &firmware.metadata;
        Self {
            firmware_id: firmware.id.clone(),
            name: metadata.name.clone(),
            version: metadata.version.clone(),
            device_model: metadata.device_model.clone(),
            manufacturer: metadata.manufacturer.clone(),
            file_size: firmware.size,
            checksum_md5: firmware.md5.clone(),
            checksum_sha256: firmware.sha256.clone(),
        }
    }
}

/// A link to the bytes and what to check them against (PRD, E1-US4).
#[derive(Serialize, ToSchema)]
#[schema(as = DownloadLink)]
pub(crate) struct GrantDto<'a> {
    firmware_id: &'a FirmwareId,
    version: &'a str,
    url: &'a str,
    expires_at: Timestamp,
    file_size: u64,
    checksum_md5: &'a str,
    checksum_sha256: &'a str,
}

impl<'a> From<&'a DownloadGrant> for GrantDto<'a> {
    fn from(grant: &'a DownloadGrant) -> Self {
        let firmware = &grant.firmware;
        Self {
            firmware_id: &firmware.id,
            version: &firmware.metadata.version,
            url: &grant.url,
            expires_at: grant.expires_at,
            file_size: firmware.size,
            checksum_md5: &firmware.md5,
            checksum_sha256: &firmware.sha256,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod tests {
    use super::*;

    /// An image, for this test and others.
    pub(crate) fn firmware() -> Firmware {
        let metadata = serde_json::json!({
            "name": "Smart Frame Firmware", "version": "2.1.0", "device_model": "SF-100", "manufacturer": "Acme",
            "description": "Bug fixes"
        });
        Firmware {
            id: FirmwareId::of("Smart Frame Firmware", "2.1.0", "SF-100"),
            metadata: serde_json::from_value(metadata).unwrap(),
            format: device_ota_domain::firmware::Format::Bin,
            size: 52_428_800,
            sha256: "5e".repeat(32),
            md5: "d4".repeat(16),
            release: "{}".to_owned(),
            release_sha256: "00".repeat(32),
            download_count: 0,
            results: device_ota_domain::firmware::Results::default(),
            storage: device_ota_domain::firmware::Storage::Local,
            deprecated_at: None,
            created_at: Timestamp::from_second(1_766_052_000).unwrap(),
            updated_at: Timestamp::from_second(1_766_052_000).unwrap(),
            created_by: "admin".to_owned(),
        }
    }

    #[test]
    fn an_image_has_the_fields_of_the_prd() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&FirmwareDto::from(&firmware())).unwrap(), @r#"
        {
          "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
          "name": "Smart Frame Firmware",
          "version": "2.1.0",
          "description": "Bug fixes",
          "device_model": "SF-100",
          "manufacturer": "Acme",
          "format": "bin",
          "file_size": 52428800,
          "file_url": "/api/v1/firmware/770987aca3a746dfa5bef4f8b0e59f22/download",
          "checksum_md5": "d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4",
          "checksum_sha256": "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e",
          "is_beta": false,
          "is_security_update": false,
          "security_version": 0,
          "hw_revisions": [],
          "min_battery_percent": null,
          "min_free_storage_bytes": null,
          "release_notes": null,
          "storage": "local",
          "download_count": 0,
          "success_rate": 0.0,
          "created_at": "2025-12-18T10:00:00Z",
          "updated_at": "2025-12-18T10:00:00Z",
          "created_by": "admin",
          "status": "active",
          "deprecated_at": null
        }
        "#);
    }

    #[test]
    fn a_link_comes_with_its_expiry_and_checksums() {
        let grant = DownloadGrant {
            url: "http://x/api/v1/ota/objects/t".to_owned(),
            expires_at: Timestamp::from_second(1_766_055_600).unwrap(),
            firmware: firmware(),
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&GrantDto::from(&grant)).unwrap(), @r#"
        {
          "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
          "version": "2.1.0",
          "url": "http://x/api/v1/ota/objects/t",
          "expires_at": "2025-12-18T11:00:00Z",
          "file_size": 52428800,
          "checksum_md5": "d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4",
          "checksum_sha256": "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"
        }
        "#);
    }
}
