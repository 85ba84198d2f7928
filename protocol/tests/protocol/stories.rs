//! One device, one update at a time, from offer to end.

use device_ota_protocol::Slot;
use device_ota_protocol::agent::{Ignored, Input, Output, Stage};
use device_ota_protocol::messages::{CheckReason, ErrorCode, Phase};
use device_ota_protocol::objects::{Action, CommandKind, Mode, Root, seal};
use device_ota_protocol::topics::Down;

use crate::harness::{Device, IMAGE_SIZE, Service, image_of, online, start};

/// Takes a device to 2.1.0, and leaves 2.0.0 in its other slot.
fn updated() -> (Service, Device) {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.outcome(), (Phase::Completed, None));
    device.done.clear();
    device.connect();
    (service, device)
}

/// A device in the middle of a download that nobody feeds.
fn downloading() -> (Service, Device) {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    (service, device)
}

#[test]
fn an_update_goes_from_offer_to_confirmed_image() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 2);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));

    let story: Vec<String> = device
        .reports()
        .iter()
        .map(|r| {
            format!(
                "{} {} {}",
                r.seq,
                r.phase,
                r.version.as_deref().unwrap_or("-")
            )
        })
        .collect();
    insta::assert_debug_snapshot!(story, @r#"
    [
        "1 accepted 2.0.0",
        "2 downloading 2.0.0",
        "3 verifying 2.0.0",
        "4 installing 2.0.0",
        "5 rebooting 2.0.0",
        "6 completed 2.1.0",
    ]
    "#);
    let reasons: Vec<_> = device.checks().iter().map(|check| check.reason).collect();
    assert_eq!(reasons, [Some(CheckReason::Boot); 2], "one for each start");
    let state = device.agent.state();
    assert_eq!((state.active, state.security_floor), (Slot::B, 2));
    assert_eq!(device.agent.heartbeat().confirmed, Some(true));
}

#[test]
fn the_messages_of_an_update_look_as_the_protocol_shows_them() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    let wire: Vec<String> = device
        .done
        .iter()
        .filter_map(|output| match output {
            Output::Publish { up, payload } => {
                let text = String::from_utf8_lossy(payload);
                Some(format!("{up} {text}"))
            }
            _ => None,
        })
        .collect();
    insta::assert_snapshot!(wire.join("\n"), @r#"
    check {"version":"2.0.0","nonce":"6129382d224e352188014f62298cdb5d","reason":"boot"}
    progress {"update_id":"upd_1","attempt":1,"seq":1,"phase":"accepted","version":"2.0.0"}
    progress {"update_id":"upd_1","attempt":1,"seq":2,"phase":"downloading","percent":50.0,"bytes_done":500,"bytes_total":1000,"version":"2.0.0"}
    progress {"update_id":"upd_1","attempt":1,"seq":3,"phase":"verifying","version":"2.0.0"}
    progress {"update_id":"upd_1","attempt":1,"seq":4,"phase":"installing","version":"2.0.0"}
    progress {"update_id":"upd_1","attempt":1,"seq":5,"phase":"rebooting","version":"2.0.0"}
    check {"version":"2.1.0","nonce":"7ada6bfbcb3740f94f1b849f8493217d","reason":"boot"}
    progress {"update_id":"upd_1","attempt":1,"seq":6,"phase":"completed","version":"2.1.0"}
    "#);
}

#[test]
fn the_floor_rises_only_when_the_image_has_confirmed_itself() {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    let release = Service::release("2.1.0", 7);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    let (size, sha256) = (IMAGE_SIZE, release.sha256);
    device.feed(Input::ImageReady { size, sha256 });
    device.feed(Input::Installed(Ok(())));
    device.power_cycle();
    assert_eq!(device.agent.running_slot(), Slot::B);
    assert_eq!(device.agent.heartbeat().confirmed, Some(false));
    assert_eq!(device.agent.state().security_floor, 1);
    device.feed(Input::HealthChecked(Ok(())));
    assert_eq!(device.agent.state().security_floor, 7);
}

#[test]
fn an_image_that_is_not_well_gives_way_to_the_old_one() {
    let (mut service, mut device) = online();
    device.parts.new_image_is_well = false;
    let release = Service::release("2.1.0", 9);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::HealthCheckFailed))
    );
    assert_eq!(device.last().version.as_deref(), Some("2.0.0"));
    assert_eq!(device.agent.state().security_floor, 1);
}

#[test]
fn an_image_that_does_not_boot_gives_way_to_the_old_one() {
    let (mut service, mut device) = online();
    device.parts.new_image_boots = false;
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::BootFailed))
    );
    assert_eq!(device.last().version.as_deref(), Some("2.0.0"));
}

#[test]
fn a_silent_health_check_counts_as_a_failed_one() {
    let (_service, mut device) = downloading();
    let sha256 = image_of("2.1.0");
    device.feed(Input::ImageReady {
        size: IMAGE_SIZE,
        sha256,
    });
    device.feed(Input::Installed(Ok(())));
    device.power_cycle();
    device.pass(599);
    assert!(!device.done.ends_with(&[Output::Reboot { slot: Slot::A }]));
    device.pass(1);
    device.power_cycle();
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::HealthCheckFailed))
    );
}

#[test]
fn a_rollback_to_the_image_in_the_other_slot_downloads_nothing() {
    let (mut service, mut device) = updated();
    let release = Service::release("2.0.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.update_id = "upd_2".into();
    assignment.action = Action::Rollback;
    device.done.clear();
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.phases(),
        [
            Phase::Accepted,
            Phase::Installing,
            Phase::Rebooting,
            Phase::Completed
        ]
    );
    assert!(device.downloads().is_empty());
    assert_eq!(device.agent.running_version(), "2.0.0");
    assert_eq!(device.agent.running_slot(), Slot::A);
}

#[test]
fn what_runs_already_is_completed_at_once() {
    let (mut service, mut device) = online();
    let release = Service::release("2.0.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.phases(), [Phase::Completed]);
    assert!(device.downloads().is_empty());
}

#[test]
fn a_staged_image_waits_for_its_command() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.mode = Mode::Stage;
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.outcome(), (Phase::Staged, None));
    device.power_cycle();
    assert_eq!(device.outcome(), (Phase::Staged, None));

    let activate = service.command(CommandKind::Activate, "upd_1");
    device.receive(Down::Command, &activate);
    assert_eq!(device.outcome(), (Phase::Completed, None));
    assert_eq!(device.agent.running_version(), "2.1.0");
}

#[test]
fn a_staged_image_can_be_given_up() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.mode = Mode::Stage;
    device.take(&service.offer(&release, &assignment));
    let cancel = service.command(CommandKind::Cancel, "upd_1");
    device.receive(Down::Command, &cancel);
    assert_eq!(device.outcome(), (Phase::Cancelled, None));
    // What is in the idle slot is never started for it any more.
    let activate = service.command(CommandKind::Activate, "upd_1");
    device.receive(Down::Command, &activate);
    assert_eq!(device.outcome(), (Phase::Cancelled, None));
    assert_eq!(device.agent.running_version(), "2.0.0");
}

#[test]
fn a_download_can_be_cancelled_and_an_installation_cannot() {
    let (mut service, mut device) = downloading();
    let cancel = service.command(CommandKind::Cancel, "upd_1");
    device.receive(Down::Command, &cancel);
    assert_eq!(device.outcome(), (Phase::Cancelled, None));
    assert!(device.done.contains(&Output::AbortDownload));

    let (mut service, mut device) = downloading();
    let sha256 = image_of("2.1.0");
    device.feed(Input::ImageReady {
        size: IMAGE_SIZE,
        sha256,
    });
    let cancel = service.command(CommandKind::Cancel, "upd_1");
    device.receive(Down::Command, &cancel);
    assert_eq!(device.outcome(), (Phase::Installing, None));
}

#[test]
fn a_command_counts_once_and_for_this_device_only() {
    let (mut service, mut device) = downloading();
    let old = service.command(CommandKind::Cancel, "upd_1");
    let activate = service.command(CommandKind::Activate, "upd_1");
    device.receive(Down::Command, &activate);
    device.receive(Down::Command, &old);
    assert_eq!(device.ignored(), [Ignored::Replayed]);
    assert_eq!(device.outcome(), (Phase::Accepted, None));
    device.receive(Down::Command, b"{}");
    assert_eq!(device.ignored().last(), Some(&Ignored::Malformed));
}

#[test]
fn a_cancelled_offer_that_was_still_on_its_way_is_not_taken() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    let cancel = service.command(CommandKind::Cancel, "upd_1");
    device.receive(Down::Command, &cancel);
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Rejected, Some(ErrorCode::Replayed))
    );
    assert!(device.downloads().is_empty());
}

#[test]
fn wrong_bytes_are_not_installed() {
    let cases = [
        (IMAGE_SIZE, image_of("other"), ErrorCode::HashMismatch),
        (IMAGE_SIZE - 1, image_of("2.1.0"), ErrorCode::SizeMismatch),
    ];
    for (size, sha256, code) in cases {
        let (_service, mut device) = downloading();
        device.feed(Input::ImageReady { size, sha256 });
        assert_eq!(device.outcome(), (Phase::Failed, Some(code)));
        assert_eq!(
            device.agent.state().partial,
            None,
            "bad bytes are not gone on from"
        );
    }
    let (_service, mut device) = downloading();
    device.feed(Input::Downloaded {
        bytes_done: IMAGE_SIZE + 1,
    });
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::SizeMismatch))
    );
}

#[test]
fn a_download_is_reported_by_tenths_and_not_by_packets() {
    let (_service, mut device) = downloading();
    for bytes_done in (0..=IMAGE_SIZE).step_by(7) {
        device.pass(1);
        device.feed(Input::Downloaded { bytes_done });
    }
    let reports = device.reports();
    assert!(
        (9..=12).contains(&reports.len()),
        "{} reports",
        reports.len()
    );
    let last = device.last();
    assert_eq!(last.bytes_total, Some(IMAGE_SIZE));
    assert_eq!(last.speed_bps, Some(7), "seven bytes each second");
}

#[test]
fn a_second_attempt_goes_on_where_the_first_one_stopped() {
    let (mut service, mut device) = downloading();
    device.feed(Input::Downloaded { bytes_done: 600 });
    device.feed(Input::DownloadFailed {
        code: ErrorCode::DownloadFailed,
        message: "reset by peer",
    });
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::DownloadFailed))
    );
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.attempt = 2;
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.downloads(), [0, 600]);
    let last = device.last();
    assert_eq!((last.attempt, last.seq), (2, 1));
}

#[test]
fn new_urls_refresh_an_update_and_do_not_restart_it() {
    let (mut service, mut device) = downloading();
    device.feed(Input::Downloaded { bytes_done: 500 });
    device.pass(60);
    device.feed(Input::UrlsExpired);
    let check = device.checks().pop().expect("a check");
    assert_eq!(check.reason, Some(CheckReason::UrlExpired));
    assert_eq!(
        (check.update_id.as_deref(), check.offset),
        (Some("upd_1"), Some(500))
    );

    let before = device.reports();
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.urls = vec!["http://localhost/again".into()];
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.downloads(), [0, 500]);
    assert_eq!(device.reports(), before, "nothing new to say");
    assert_eq!(device.agent.state().seq, assignment.seq);
}

#[test]
fn a_lost_report_is_said_again_under_its_number() {
    let (_service, mut device) = downloading();
    let last = device.last();
    device.feed(Input::Disconnected);
    device.connect();
    assert_eq!(device.reports(), [last.clone(), last]);
    assert_eq!(
        device.checks().pop().and_then(|check| check.reason),
        Some(CheckReason::Reconnect)
    );
}

#[test]
fn what_happens_offline_is_said_when_online_again() {
    let (_service, mut device) = downloading();
    device.feed(Input::Disconnected);
    let before = device.reports().len();
    device.parts.by_itself = true;
    device.connected = false;
    let sha256 = image_of("2.1.0");
    device.feed(Input::ImageReady {
        size: IMAGE_SIZE,
        sha256,
    });
    assert_eq!(device.reports().len(), before);
    device.connect();
    assert_eq!(device.outcome(), (Phase::Completed, None));
    assert_eq!(device.last().seq, 5);
}

#[test]
fn the_user_may_say_later() {
    let (mut service, mut device) = downloading();
    device.feed(Input::Downloaded { bytes_done: 300 });
    device.feed(Input::UserDeferred { retry_after_s: 120 });
    assert_eq!(
        device.outcome(),
        (Phase::Deferred, Some(ErrorCode::UserDeferred))
    );
    let checks = device.checks().len();
    device.pass(119);
    assert_eq!(device.checks().len(), checks);
    device.pass(1);
    assert_eq!(device.checks().len(), checks + 1);

    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    let seq = device.last().seq;
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.outcome(), (Phase::Accepted, None));
    assert_eq!(device.last().seq, seq + 1);
    assert_eq!(device.downloads(), [0, 300]);
}

#[test]
fn what_takes_too_long_ends() {
    let (_service, mut device) = downloading();
    device.pass(6 * 3600 - 1);
    assert_eq!(device.outcome(), (Phase::Accepted, None));
    device.pass(1);
    assert_eq!(device.outcome(), (Phase::Failed, Some(ErrorCode::Timeout)));
    assert!(device.done.contains(&Output::AbortDownload));
}

#[test]
fn a_newer_offer_takes_the_place_of_a_download_and_not_of_an_installation() {
    let (mut service, mut device) = downloading();
    let release = Service::release("2.2.0", 1);
    let mut newer = service.assign(&release, Some(device.nonce()));
    newer.update_id = "upd_2".into();
    device.take(&service.offer(&release, &newer));
    assert!(device.done.contains(&Output::AbortDownload));
    assert_eq!(device.last().update_id, "upd_2");

    let (mut service, mut device) = downloading();
    let sha256 = image_of("2.1.0");
    device.feed(Input::ImageReady {
        size: IMAGE_SIZE,
        sha256,
    });
    let mut newer = service.assign(&release, Some(device.nonce()));
    newer.update_id = "upd_2".into();
    device.take(&service.offer(&release, &newer));
    assert_eq!(device.ignored(), [Ignored::Busy]);
    assert_eq!(device.agent.state().seq, newer.seq - 1, "it may come again");
}

#[test]
fn the_boot_loader_has_the_last_word() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.mode = Mode::Stage;
    device.take(&service.offer(&release, &assignment));
    // Somebody pressed the button that starts the other slot.
    device.feed(Input::Booted {
        slot: Slot::B,
        fell_back: false,
    });
    device.connect();
    assert_eq!(device.outcome(), (Phase::Completed, None));
    assert_eq!(device.agent.running_version(), "2.1.0");
}

#[test]
fn a_device_follows_its_root() {
    let (service, mut device) = online();
    let next = Root {
        version: 2,
        ..(*service.root).clone()
    };
    let envelope = seal(&next, &service.root_key).expect("a root");
    device.feed(Input::Root(&envelope));
    assert_eq!(device.agent.state().root.version, 2);
    device.feed(Input::Root(&envelope));
    assert_eq!(device.ignored(), [Ignored::NotVerified]);
}

#[test]
fn a_quiet_device_asks_when_it_was_told_to() {
    let (_service, mut device) = online();
    device.pass(3599);
    assert_eq!(device.checks().len(), 1);
    device.pass(1);
    assert_eq!(device.checks().len(), 2);
    let nonces: Vec<_> = device.checks().into_iter().map(|c| c.nonce).collect();
    assert_ne!(nonces.first(), nonces.last());
    assert_eq!(device.agent.trusted_time(start()), Some(start()));
    assert!(!matches!(
        device.agent.state().update.as_ref().map(|u| &u.stage),
        Some(Stage::Downloading { .. })
    ));
}
