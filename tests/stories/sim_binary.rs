//! The binary `device-sim` as scripts call it: what its exit status and its JSON say.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::fleet::{arguments, image_file};
use crate::harness::{BINARY, Options, Service, eventually, within};

matrix!(the_exit_status_says_whether_devices_are_where_they_should_be: sqlite_gateway);
matrix!(a_fleet_that_is_stopped_is_judged_too: sqlite_gateway);
matrix!(a_broken_promise_has_a_status_of_its_own: sqlite_gateway);
matrix!(what_is_mistyped_accuses_nobody: sqlite_gateway);

async fn what_is_mistyped_accuses_nobody(options: Options) {
    let service = Service::start(options).await;
    let (status, _, said) = ended(start(&service, "typo", 1, &["--fail", "nonsense=5%"])).await;
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("nonsense"), "{said}");
}

/// Built beside the service wherever the whole workspace's tests are.
pub fn sim() -> PathBuf {
    let path = Path::new(BINARY).with_file_name("device-sim");
    assert!(
        path.exists(),
        "{} is not built: run with --workspace",
        path.display()
    );
    path
}

/// A fleet of that name, on its way.
fn start(service: &Service, name: &str, devices: usize, more: &[&str]) -> Child {
    let mut arguments = arguments(service, devices, more);
    // Given twice, a time is refused.
    if more.contains(&"--timeout") {
        let first = arguments
            .iter()
            .position(|flag| flag == "--timeout")
            .unwrap();
        arguments.drain(first..first + 2);
    }
    Command::new(sim())
        .args(arguments.iter().skip(1))
        .args(["--prefix", &format!("{name}-"), "--group", name, "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Its exit status, what it printed as JSON, and what it said of errors.
async fn ended(child: Child) -> (Option<i32>, Value, String) {
    let output = within("device-sim ends", child.wait_with_output())
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json, said)
}

async fn interrupted(child: Child) -> (Option<i32>, Value, String) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(id), Signal::SIGINT).unwrap();
    ended(child).await
}

fn rollout<'a>(file: &'a Path, version: &'a str) -> [&'a str; 4] {
    ["--rollout", file.to_str().unwrap(), "--to-version", version]
}

async fn the_exit_status_says_whether_devices_are_where_they_should_be(options: Options) {
    let service = Service::start(options).await;
    let file = image_file(service.scratch(), "2.0.0");
    let (status, json, said) = ended(start(&service, "good", 4, &rollout(&file, "2.0.0"))).await;
    assert_eq!(status, Some(0), "{json:#} {said}");
    assert_eq!(json["verdict"], "good");
    assert_eq!(json["reached_goal"], true);
    assert_eq!(json["by_version"], json!({ "2.0.0": 4 }));
    assert_eq!(json["campaign"]["status"], "completed");
    assert_eq!(json["audited"], 4);

    let never = ["--until", "9.0.0", "--timeout", "2s"];
    let (status, json, said) = ended(start(&service, "late", 2, &never)).await;
    assert_eq!(status, Some(1), "{json:#} {said}");
    assert_eq!(
        (&json["verdict"], &json["reached_goal"]),
        (&json!("astray"), &json!(false))
    );
    assert_eq!(json["astray"].as_array().unwrap().len(), 2, "{json:#}");

    let key = ["--admin-key", "wrong"];
    let mut nobody = Command::new(sim());
    nobody
        .args([
            "--http",
            &service.admin().url(""),
            "--mqtt",
            &service.mqtt(),
        ])
        .args(key);
    let output = nobody
        .args(["--devices", "1", "--json"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("401") && output.stdout.is_empty(), "{said}");

    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("device-sim/scenarios/immediate.toml");
    let mut play = Command::new(sim());
    play.arg("scenario").arg(story).args(["--json", "--quiet"]);
    play.args([
        "--http",
        &service.admin().url(""),
        "--mqtt",
        &service.mqtt(),
    ]);
    play.args(["--admin-key", service.key()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (status, json, said) = ended(play.kill_on_drop(true).spawn().unwrap()).await;
    assert_eq!(status, Some(0), "{json:#} {said}");
    assert_eq!(
        (&json["name"], &json["summary"]["verdict"]),
        (&json!("immediate"), &json!("good"))
    );
}

async fn a_fleet_that_is_stopped_is_judged_too(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let at_rest = start(&service, "rest", 3, &["--until", "forever"]);
    eventually("all are online", async || {
        let list = admin
            .get("/api/v1/ota/devices?group=rest")
            .await
            .expect(200);
        let devices = list["devices"].as_array().unwrap();
        let online = devices.iter().filter(|device| device["online"] == true);
        if online.count() == 3 {
            Ok(())
        } else {
            Err(list.to_string())
        }
    })
    .await;
    let (status, json, said) = interrupted(at_rest).await;
    assert_eq!(status, Some(0), "{json:#} {said}");
    assert_eq!(json["reached_goal"], Value::Null);

    let file = image_file(service.scratch(), "2.0.0");
    let mut slowly = rollout(&file, "2.0.0").to_vec();
    slowly.extend(["--until", "forever", "--speed", "1000", "--chunks", "0"]);
    let midway = start(&service, "midway", 2, &slowly);
    eventually("one downloads", async || {
        let list = admin
            .get("/api/v1/ota/updates?status=downloading")
            .await
            .expect(200);
        if list["updates"] == json!([]) {
            Err(list.to_string())
        } else {
            Ok(())
        }
    })
    .await;
    let (status, json, said) = interrupted(midway).await;
    assert_eq!(status, Some(1), "{json:#} {said}");
    assert_eq!(json["verdict"], "astray");
}

async fn a_broken_promise_has_a_status_of_its_own(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let file = image_file(service.scratch(), "2.0.0");
    let mut flags = rollout(&file, "2.0.0").to_vec();
    flags.extend(["--until", "forever"]);
    let fleet = start(&service, "lost", 2, &flags);
    eventually("the campaign has ended", async || {
        let list = admin
            .get("/api/v1/ota/campaigns?status=completed")
            .await
            .expect(200);
        if list["campaigns"] == json!([]) {
            Err(list.to_string())
        } else {
            Ok(())
        }
    })
    .await;
    // What was acknowledged is gone.
    service.tamper("DELETE FROM device_updates").await.unwrap();
    let (status, json, said) = interrupted(fleet).await;
    assert_eq!(status, Some(2), "{json:#} {said}");
    assert_eq!(
        (&json["verdict"], &json["violations"]),
        (&json!("violated"), &json!(2))
    );
}
