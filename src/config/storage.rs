//! Settings of where images lie.

use device_ota_objects::S3Settings;

use super::ConfigError;
use super::raw::RawConfig;
use super::values::Checked;

/// Longest name of a bucket, and its shortest.
const BUCKET_LETTERS: std::ops::RangeInclusive<usize> = 3..=63;

/// The bucket; `None`: images lie in the local folder alone.
pub(super) fn s3(raw: &RawConfig) -> Checked<Option<S3Settings>> {
    match raw.storage_type.as_deref().unwrap_or("local") {
        "local" => none_beside_local(raw).map(|()| None),
        "s3" => bucket(raw).map(Some),
        other => Err(ConfigError::new(
            "STORAGE_TYPE",
            format!("{other:?} is not a storage type; use local or s3"),
        )),
    }
}

fn none_beside_local(raw: &RawConfig) -> Checked<()> {
    for (name, value) in [
        ("STORAGE_S3_ENDPOINT", &raw.storage_s3_endpoint),
        (
            "STORAGE_S3_PUBLIC_ENDPOINT",
            &raw.storage_s3_public_endpoint,
        ),
        ("STORAGE_S3_BUCKET", &raw.storage_s3_bucket),
        ("STORAGE_S3_REGION", &raw.storage_s3_region),
        ("STORAGE_S3_ACCESS_KEY", &raw.storage_s3_access_key),
        ("STORAGE_S3_SECRET_KEY", &raw.storage_s3_secret_key),
    ] {
        if value.is_some() {
            return Err(ConfigError::new(name, "needs STORAGE_TYPE=s3 beside it"));
        }
    }
    Ok(())
}

fn bucket(raw: &RawConfig) -> Checked<S3Settings> {
    let name = needed("STORAGE_S3_BUCKET", raw.storage_s3_bucket.as_deref())?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    if !BUCKET_LETTERS.contains(&name.len()) || !name.chars().all(plain) {
        return Err(ConfigError::new(
            "STORAGE_S3_BUCKET",
            format!(
                "{name:?} is no bucket's name: 3 to 63 lower-case letters, digits, dots and hyphens"
            ),
        ));
    }
    let endpoint = needed("STORAGE_S3_ENDPOINT", raw.storage_s3_endpoint.as_deref())?;
    let public = raw.storage_s3_public_endpoint.as_deref();
    let settings = S3Settings {
        endpoint: address("STORAGE_S3_ENDPOINT", endpoint)?,
        public_endpoint: public
            .map(|public| address("STORAGE_S3_PUBLIC_ENDPOINT", public))
            .transpose()?,
        bucket: name.to_owned(),
        region: raw
            .storage_s3_region
            .clone()
            .unwrap_or_else(|| "us-east-1".to_owned()),
        access_key: needed(
            "STORAGE_S3_ACCESS_KEY",
            raw.storage_s3_access_key.as_deref(),
        )?
        .to_owned(),
        secret_key: needed(
            "STORAGE_S3_SECRET_KEY",
            raw.storage_s3_secret_key.as_deref(),
        )?
        .to_owned(),
    };
    let checked = settings.check();
    checked.map_err(|error| ConfigError::new("STORAGE_S3_ENDPOINT", error.to_string()))?;
    Ok(settings)
}

fn needed<'a>(name: &str, value: Option<&'a str>) -> Checked<&'a str> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ConfigError::new(name, "is needed with STORAGE_TYPE=s3"))
}

/// `http` or `https`, a host and perhaps a port, and nothing that the client would put its own in place of.
fn address(name: &str, text: &str) -> Checked<String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let host = rest.unwrap_or_default().trim_end_matches('/');
    let port = host.rsplit_once(':').map(|(_, port)| port);
    let port = port.filter(|port| !port.ends_with(']'));
    let odd_port = port.is_some_and(|port| port.parse().map_or(true, |port: u16| port == 0));
    if odd_port || host.is_empty() || !host.is_ascii() || host.contains(['/', '?', '#', '@', ' ']) {
        return Err(ConfigError::new(
            name,
            format!(
                "{text:?} is not an address such as http://minio:9000 or https://s3.eu-central-1.amazonaws.com"
            ),
        ));
    }
    Ok(text.trim_end_matches('/').to_owned())
}
