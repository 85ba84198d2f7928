//! That each row still runs, at its smallest: what it measures in a moment beside other tests means nothing.

use std::process::Command;

fn runs(row: &[&str]) {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_device-ota-bench"));
    // Debian's mosquitto lies where only the administrator looks.
    let path = std::env::var("PATH").unwrap_or_default();
    bench.env("PATH", format!("{path}:/usr/sbin"));
    let smallest = ["--rounds", "1", "--seconds", "1"];
    let output = bench.args(row).args(smallest).output();
    let output = output.expect("the bench can be started");
    assert!(
        output.status.success(),
        "{row:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn campaign() {
    let few = "--devices 200 --connected 20 --per-minute 6000";
    let row: Vec<&str> = std::iter::once("campaign").chain(few.split(' ')).collect();
    runs(&row);
}

#[test]
fn connections() {
    runs(&["connections", "--devices", "100"]);
}

#[test]
fn fan_out() {
    runs(&["fan-out", "--devices", "100"]);
}

#[test]
fn heartbeats() {
    runs(&["heartbeats", "--connections", "50"]);
}

#[test]
fn history() {
    runs(&["history", "--heartbeats", "10000", "--devices", "100"]);
}

#[test]
fn latencies() {
    runs(&["latencies", "--requests", "20", "--reports", "1000"]);
}

#[test]
fn named() {
    runs(&["named", "--devices", "1000"]);
}

#[test]
fn progress_reads() {
    runs(&["progress-reads", "--reports", "1000"]);
}

#[test]
fn start() {
    runs(&["start", "--devices", "1000"]);
}

#[test]
fn stats() {
    runs(&["stats", "--campaigns", "1"]);
}

#[test]
fn stop() {
    runs(&["stop"]);
}

#[test]
fn upload() {
    runs(&["upload", "--megabytes", "1"]);
}
