//! The README's walk of five minutes, as it stands there, but for the ports and for binaries that are built already.

use std::process::Stdio;

use tokio::process::Command;

use crate::harness::{Options, Service, eventually, shell_blocks};
use crate::sim_binary::sim;

matrix!(the_five_minutes_work_when_they_are_pasted: sqlite_gateway);

async fn the_five_minutes_work_when_they_are_pasted(options: Options) {
    let service = Service::start(options).await;
    let fleet = format!(
        "exec {} --http {} --mqtt {}",
        sim().display(),
        service.admin().url(""),
        service.mqtt()
    );
    let adapted = |text: &str| {
        let text = text.replace("http://127.0.0.1:8216", &service.admin().url(""));
        text.replace("cargo run --release --bin device-sim --", &fleet)
    };
    let blocks = shell_blocks("README.md", "Five minutes: from an upload to a rollback");
    let [first, second] = blocks.as_slice() else {
        panic!("{} blocks", blocks.len())
    };
    let terminal = |script: String| {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &script]);
        bash.current_dir(service.scratch())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        bash
    };
    let _fleet = terminal(adapted(first))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let admin = service.admin();
    eventually("200/200 are online", async || {
        let status = admin.get("/api/v1/devices/status").await.expect(200);
        let all = status["online"] == 200;
        all.then_some(()).ok_or_else(|| status.to_string())
    })
    .await;
    // The third terminal needs the definitions at the head of the first block, too.
    let (definitions, _) = first.split_once("\n# 1.").unwrap();
    let mut third = terminal(adapted(&format!("{definitions}\n{second}")));
    let output = third.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{wrong}");
    assert!(wrong.is_empty(), "{wrong}");
    let rolled_back = said.matches(r#""status": "completed""#).count();
    assert_eq!(rolled_back, 3, "{said}");
    for shown in ["in_progress", "paused", "rolling_back"] {
        assert!(said.contains(&format!("\"{shown}\"")), "{shown}: {said}");
    }
}
