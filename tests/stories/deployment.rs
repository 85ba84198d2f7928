//! What the repository offers for production can be used as it stands: the settings are ones that a start takes, and the files are
//! ones that their programs read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::harness::BINARY;

/// What is looked at of `docker-compose.yml`.
#[derive(Deserialize)]
struct Compose {
    services: BTreeMap<String, ComposeService>,
    volumes: BTreeMap<String, Option<serde_json::Value>>,
}

#[derive(Deserialize)]
struct ComposeService {
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    depends_on: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    volumes: Vec<String>,
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap()
}

/// `${NAME:?what is missing}` with `value` for each name.
fn filled_in(text: &str, value: &str) -> String {
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let (_, rest) = part.split_once('}').unwrap();
        filled += value;
        filled += rest;
    }
    filled
}

#[track_caller]
fn assert_usable(settings: impl IntoIterator<Item = (String, String)>) {
    let output = Command::new(BINARY)
        .env_clear()
        .envs(settings)
        .args(["config", "check"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_settings_for_production_are_taken() {
    let text = file("deploy/device-ota.env");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let settings = lines.map(|line| line.split_once('=').unwrap());
    let settings = settings.map(|(name, value)| {
        let value = match name {
            // Who runs the tests may not write where the service does.
            "DEVICE_OTA_DATA_DIR" => std::env::temp_dir().display().to_string(),
            _ => value.to_owned(),
        };
        (name.to_owned(), value)
    });
    assert_usable(settings);
}

/// Also those that are not set to begin with: none is called otherwise by now.
#[test]
fn the_settings_for_production_are_called_so() {
    let text = file("deploy/device-ota.env");
    let help = Command::new(BINARY).env_clear().arg("--help").output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let flags: BTreeSet<&str> = help.split_whitespace().collect();
    let mut named = BTreeSet::new();
    for line in text.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        let Some(setting) = line.strip_prefix("DEVICE_OTA_") else {
            continue;
        };
        let (name, value) = setting.split_once('=').unwrap();
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(flags.contains(flag.as_str()), "{flag}\n{help}");
        assert!(!value.is_empty(), "{line}");
        named.insert(name);
    }
    for name in [
        "HTTP_TLS_CERT",
        "HTTP_TLS_KEY",
        "MQTT_SHARED_GROUP",
        "NATS_URL",
        "RELEASE_KEY",
    ] {
        assert!(named.contains(name), "{name} is one to know of");
    }
}

#[test]
fn the_composed_services_fit_together() {
    let compose: Compose = serde_saphyr::from_str(&file("docker-compose.yml")).unwrap();
    for (name, service) in &compose.services {
        for needed in service.depends_on.keys() {
            assert!(compose.services.contains_key(needed), "{name}: {needed}");
        }
        for volume in &service.volumes {
            let (volume, _) = volume.split_once(':').unwrap();
            assert!(compose.volumes.contains_key(volume), "{name}: {volume}");
        }
    }
    let service = &compose.services["device-ota"];
    for needed in service.depends_on.keys() {
        let used = service.environment.values();
        assert!(
            used.clone().any(|value| value.contains(needed)),
            "nothing is told of {needed}"
        );
    }
    let settings = service.environment.iter().map(|(name, value)| {
        let value = match name.as_str() {
            "DEVICE_OTA_PUBLIC_URL" => "https://ota.example.com".to_owned(),
            _ => filled_in(value, "secret"),
        };
        (name.clone(), value)
    });
    assert_usable(settings);
}

#[test]
fn the_unit_is_one_that_systemd_reads() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("device-ota.service");
    let text = file("deploy/device-ota.service");
    assert!(text.contains("ExecStart=/usr/local/bin/device-ota\n"));
    std::fs::write(&unit, text.replace("/usr/local/bin/device-ota", BINARY)).unwrap();
    // What it says of units and manuals that are not installed here is no matter of this file.
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&unit)
        .output()
        .expect("systemd-analyze, which ./test installs with the package systemd");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
}
