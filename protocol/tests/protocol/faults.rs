//! Faults of the device's own parts: restarts in the middle, boot loops, slots that went bad.

use device_ota_protocol::Slot;
use device_ota_protocol::agent::{Ignored, Input, Output, Stage};
use device_ota_protocol::messages::{CheckReason, ErrorCode, Phase, Reply};
use device_ota_protocol::objects::{Action, Command, CommandKind, Mode};
use device_ota_protocol::topics::Down;

use crate::harness::{Device, IMAGE_SIZE, Service, hours, image_of, online, start};

/// Offers a version, as the next attempt at it.
fn offer(service: &mut Service, device: &mut Device, version: &str, attempt: u32, action: Action) {
    let release = Service::release(version, 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.update_id = format!("upd_{version}");
    assignment.attempt = attempt;
    assignment.action = action;
    assignment.urls_expire_at = Some(start() + hours(1));
    device.take(&service.offer(&release, &assignment));
}

/// A device with nobody to do what it asks for, told to take 2.1.0.
fn told() -> (Service, Device) {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    offer(&mut service, &mut device, "2.1.0", 1, Action::Update);
    (service, device)
}

fn image_ready(device: &mut Device, version: &str) {
    let sha256 = image_of(version);
    device.feed(Input::ImageReady {
        size: IMAGE_SIZE,
        sha256,
    });
}

/// A device on 2.1.0 with 2.0.0 in its other slot.
fn updated() -> (Service, Device) {
    let (mut service, mut device) = online();
    offer(&mut service, &mut device, "2.1.0", 1, Action::Update);
    device.done.clear();
    device.connect();
    (service, device)
}

#[test]
fn a_download_goes_on_after_a_restart() {
    let (_service, mut device) = told();
    device.feed(Input::Downloaded { bytes_done: 500 });
    device.power_cycle();
    assert_eq!(device.downloads(), [0, 500]);
    let check = device.checks().pop().expect("a check");
    assert_eq!(check.offset, Some(500));
}

#[test]
fn a_download_whose_urls_ran_out_is_asked_for_again() {
    let (_service, mut device) = told();
    let state = device.agent.state().clone();
    let config = device_ota_protocol::agent::Config {
        clock_trusted: true,
        ..Default::default()
    };
    let identity = crate::harness::identity();
    device.agent = device_ota_protocol::agent::Agent::new(identity, config, state);
    device.now += hours(1);
    device.boot();
    device.connect();
    device.pass(10);
    assert_eq!(device.downloads(), [0], "not from the old ones");
    let reason = device.checks().pop().and_then(|check| check.reason);
    assert_eq!(reason, Some(CheckReason::UrlExpired));
}

#[test]
fn an_installation_is_begun_again_after_a_restart() {
    let (_service, mut device) = told();
    image_ready(&mut device, "2.1.0");
    device.power_cycle();
    let install = |output: &&Output| matches!(output, Output::Install { slot: Slot::B, .. });
    assert_eq!(device.done.iter().filter(install).count(), 2);
}

#[test]
fn a_slot_that_runs_is_never_written() {
    let (_service, mut device) = told();
    image_ready(&mut device, "2.1.0");
    device.done.clear();
    device.feed(Input::Booted {
        slot: Slot::B,
        fell_back: false,
    });
    device.connect();
    let install = |output: &Output| matches!(output, Output::Install { .. });
    assert!(!device.done.iter().any(install));
    assert_eq!(device.outcome(), (Phase::Failed, Some(ErrorCode::Internal)));
}

#[test]
fn an_installation_has_its_time() {
    let (_service, mut device) = told();
    image_ready(&mut device, "2.1.0");
    device.pass(3599);
    assert_eq!(device.outcome(), (Phase::Installing, None));
    device.pass(1);
    assert_eq!(device.outcome(), (Phase::Failed, Some(ErrorCode::Timeout)));
    device.feed(Input::Installed(Ok(())));
    assert_eq!(device.ignored(), [Ignored::OutOfPlace]);
}

#[test]
fn an_image_that_keeps_restarting_is_given_up_even_by_a_patient_boot_loader() {
    let (_service, mut device) = told();
    device.parts.tries = u8::MAX;
    image_ready(&mut device, "2.1.0");
    device.feed(Input::Installed(Ok(())));
    for _ in 0..4 {
        device.power_cycle();
    }
    assert!(matches!(
        device
            .agent
            .state()
            .update
            .as_ref()
            .map(|update| &update.stage),
        Some(Stage::FallingBack { .. })
    ));
    device.power_cycle();
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::BootFailed))
    );
    assert_eq!(device.agent.running_version(), "2.0.0");
}

#[test]
fn a_device_whose_old_slot_is_gone_stays_where_it_is() {
    let (_service, mut device) = told();
    image_ready(&mut device, "2.1.0");
    device.feed(Input::Installed(Ok(())));
    device.power_cycle();
    device.feed(Input::HealthChecked(Err("no network")));
    for _ in 0..3 {
        device.feed(Input::Booted {
            slot: Slot::B,
            fell_back: true,
        });
    }
    device.connect();
    let code = Some(ErrorCode::HealthCheckFailed);
    assert_eq!(device.outcome(), (Phase::Failed, code));
    assert_eq!(device.last().version.as_deref(), Some("2.1.0"));
}

#[test]
fn a_boot_loader_that_does_not_listen_is_asked_a_few_times() {
    let (_service, mut device) = told();
    image_ready(&mut device, "2.1.0");
    device.feed(Input::Installed(Ok(())));
    for _ in 0..3 {
        device.feed(Input::Booted {
            slot: Slot::A,
            fell_back: false,
        });
    }
    device.connect();
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::BootFailed))
    );
    let reboots = device
        .done
        .iter()
        .filter(|o| matches!(o, Output::Reboot { .. }));
    assert_eq!(reboots.count(), 3);
}

#[test]
fn a_slot_that_was_half_written_is_not_flipped_to() {
    let (mut service, mut device) = updated();
    device.parts.by_itself = false;
    offer(&mut service, &mut device, "2.2.0", 1, Action::Update);
    image_ready(&mut device, "2.2.0");
    device.feed(Input::Installed(Err("bad block")));
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::InstallFailed))
    );
    offer(&mut service, &mut device, "2.0.0", 1, Action::Rollback);
    assert_eq!(device.downloads().len(), 2);
    assert_eq!(device.outcome(), (Phase::Accepted, None));
}

#[test]
fn a_flip_that_failed_is_not_tried_again_without_a_download() {
    let (mut service, mut device) = updated();
    device.parts.new_image_boots = false;
    offer(&mut service, &mut device, "2.0.0", 1, Action::Rollback);
    assert_eq!(
        device.outcome(),
        (Phase::Failed, Some(ErrorCode::BootFailed))
    );
    assert!(device.downloads().is_empty());
    device.parts.new_image_boots = true;
    offer(&mut service, &mut device, "2.0.0", 2, Action::Rollback);
    assert_eq!(device.outcome(), (Phase::Completed, None));
    assert_eq!(device.downloads(), [0]);
}

#[test]
fn a_command_for_another_device_or_from_yesterday_is_not_obeyed() {
    let (mut service, mut device) = told();
    let mut say = |device: &mut Device, id: &str, expires_at| {
        service.seq += 1;
        let command = Command {
            device_id: id.parse().expect("an id"),
            update_id: "upd_2.1.0".into(),
            seq: service.seq,
            command: CommandKind::Cancel,
            expires_at,
        };
        let envelope = Service::signed_by(&service.dispatch_key, &command);
        device.receive(Down::Command, &envelope.to_json());
    };
    say(&mut device, "frame-2", start() + hours(1));
    say(&mut device, "frame-1", start());
    assert_eq!(device.ignored(), [Ignored::NotOurs, Ignored::Expired]);
    assert_eq!(device.outcome(), (Phase::Accepted, None));
    say(&mut device, "frame-1", start() + hours(1));
    assert_eq!(device.outcome(), (Phase::Cancelled, None));
}

#[test]
fn an_early_activate_is_remembered() {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.mode = Mode::Stage;
    device.take(&service.offer(&release, &assignment));
    let activate = service.command(CommandKind::Activate, "upd_1");
    device.receive(Down::Command, &activate);
    image_ready(&mut device, "2.1.0");
    device.feed(Input::Installed(Ok(())));
    assert_eq!(device.outcome(), (Phase::Rebooting, None));
}

#[test]
fn a_reply_cannot_make_a_device_flood_or_fall_silent() {
    for (asked, least, most) in [(0, 10, 11), (u64::MAX >> 11, 604_800, 604_801)] {
        let (_service, mut device) = online();
        let reply = Reply::nothing(Some(device.nonce()), asked);
        device.receive(Down::Reply, &reply.to_bytes());
        let before = device.checks().len();
        device.pass(least - 1);
        assert_eq!(device.checks().len(), before, "{asked}");
        device.pass(most - least + 1);
        assert_eq!(device.checks().len(), before + 1, "{asked}");
    }
}
