//! A backup, and the way back to it, by the commands of `docs/operations.md`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    BINARY, DatabaseKind, Device, MqttVersion, Offer, Options, Service, Trust, device_json,
    shell_blocks, within,
};

matrix!(a_device_believes_what_is_offered_after_a_restore: sqlite_gateway, postgres_gateway);

/// Pasted into a terminal where the data folder lies, with the settings of the service.
async fn pasted(service: &Service, block: &str) {
    let settings = service.command(&service.data_dir());
    let programs = Path::new(BINARY).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", block])
        .current_dir(service.scratch())
        .envs(settings.get_envs().filter_map(|(n, v)| Some((n, v?))))
        .env("PATH", format!("{programs}:{path}"));
    let mut bash = tokio::process::Command::from(bash);
    let output = within("the block is done", bash.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{block}\n{said}\n{wrong}");
}

/// Updates the device; the offer that it took.
async fn updated(service: &Service, device: &mut Device, trust: &Trust, firmware: &str) -> Offer {
    let admin = service.admin();
    let path = "/api/v1/ota/devices/frame-1/update";
    let made = admin.post(path, json!({ "firmware_id": firmware })).await;
    let update = made.expect(201)["update_id"].as_str().unwrap().to_owned();
    let offer = device.offer(trust).await;
    assert_eq!(offer.text("update_id"), update);
    device.complete(&offer).await;
    admin.update_becomes(&update, "completed").await;
    offer
}

async fn a_device_believes_what_is_offered_after_a_restore(options: Options) {
    let blocks = shell_blocks("docs/operations.md", "Backup and restore");
    let [of_file, of_server, to_file, to_server] = blocks.as_slice() else {
        panic!("{} blocks", blocks.len())
    };
    let (backup, restore) = match options.database {
        DatabaseKind::Sqlite => (of_file, to_file),
        DatabaseKind::Postgres => (of_server, to_server),
    };
    let mut service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut images = Vec::new();
    for version in ["2.0.0", "2.1.0", "2.2.0", "2.3.0"] {
        images.push(admin.image(version).await);
    }
    let credentials = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;
    updated(&service, &mut device, &trust, &images[1]).await;
    pasted(&service, backup).await;

    // What comes after the backup is gone with the restore, and a device has seen it.
    let seen = updated(&service, &mut device, &trust, &images[2]).await;
    service.stop().await;
    drop(device);
    pasted(&service, restore).await;
    service.start_again().await;
    let path = "/api/v1/ota/devices/frame-1";
    let version = async || admin.get(path).await.expect(200)["firmware_version"].clone();
    assert_eq!(version().await, "2.1.0");
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.2.0", "boot").await;
    let offer = updated(&service, &mut device, &trust, &images[3]).await;
    let number = |offer: &Offer| offer.assignment["seq"].as_u64().unwrap();
    assert!(
        number(&offer) > number(&seen),
        "a device would call it replayed"
    );
    assert_eq!(version().await, "2.3.0");
    let history = admin.get(&format!("{path}/updates")).await.expect(200);
    let to: Vec<&Value> = history["updates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| &u["to_version"])
        .collect();
    assert_eq!(to, ["2.3.0", "2.1.0"]);
}
