//! The power is cut after each single thing a device does, in every kind of update; the service
//! says again what it has to say, and the device ends where it should.

use device_ota_protocol::agent::{Config, Output};
use device_ota_protocol::messages::{ErrorCode, Phase};
use device_ota_protocol::objects::{Action, CommandKind, Mode, RollbackPermit};
use device_ota_protocol::topics::Down;

use crate::harness::{Device, Service, hours, image_of, start};

/// More offers than any of these updates needs.
const ROUNDS: usize = 12;
/// More outputs than any of these updates has.
const MAX_CUTS: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    Install,
    Stage,
    Unwell,
    Rollback,
}

/// Offers until the update is over, as a level-triggered service does.
fn carry_through(service: &mut Service, device: &mut Device, story: Story) {
    let (version, level) = match story {
        Story::Rollback => ("2.0.0", 1),
        _ => ("2.1.0", 2),
    };
    let release = Service::release(version, level);
    let id = format!("upd_{version}");
    for _ in 0..ROUNDS {
        let last = device.reports().pop().filter(|r| r.update_id == id);
        match last.map(|report| report.phase) {
            Some(phase) if phase.is_final() => return,
            Some(Phase::Staged) => {
                let activate = service.command(CommandKind::Activate, &id);
                device.receive(Down::Command, &activate);
            }
            _ => {
                let mut assignment = service.assign(&release, Some(device.nonce()));
                assignment.update_id.clone_from(&id);
                match story {
                    Story::Stage => assignment.mode = Mode::Stage,
                    Story::Rollback => assignment.action = Action::Rollback,
                    Story::Install | Story::Unwell => {}
                }
                let mut offer = service.offer(&release, &assignment);
                if story == Story::Rollback {
                    let permit = RollbackPermit {
                        permit_id: "permit-1".into(),
                        device_id: Some(device.agent.device_id().clone()),
                        campaign_id: None,
                        from_sha256: image_of("2.1.0"),
                        to_sha256: image_of("2.0.0"),
                        expires_at: start() + hours(24),
                    };
                    offer.permit = Some(Service::signed_by(&service.release_key, &permit));
                }
                device.take(&offer);
            }
        }
    }
    panic!("not over after {ROUNDS} rounds");
}

/// Tells a story with the power cut after so many outputs; `false` once the story is shorter.
fn tell(story: Story, cut_after: usize) -> bool {
    let mut service = Service::new();
    let mut device = Device::with(&service, Config::default(), "2.0.0", 1);
    device.come_online(&service);
    if story == Story::Rollback {
        carry_through(&mut service, &mut device, Story::Install);
        device.done.clear();
        device.connect();
    }
    device.parts.new_image_is_well = story != Story::Unwell;
    let floor = device.agent.state().security_floor;
    device.cut_after = Some(cut_after);
    carry_through(&mut service, &mut device, story);
    let was_cut = device.cut_after.is_none();

    let at = format!("{story:?}, cut after {cut_after}");
    let expected = match story {
        Story::Unwell => (Phase::Failed, Some(ErrorCode::HealthCheckFailed), "2.0.0"),
        Story::Rollback => (Phase::Completed, None, "2.0.0"),
        Story::Install | Story::Stage => (Phase::Completed, None, "2.1.0"),
    };
    let (phase, code) = device.outcome();
    assert_eq!(
        (phase, code, device.agent.running_version()),
        expected,
        "{at}"
    );
    assert_eq!(
        device.agent.running_slot(),
        device.agent.state().active,
        "{at}"
    );
    let rises = matches!(story, Story::Install | Story::Stage);
    let floor = if rises { 2 } else { floor };
    assert_eq!(device.agent.state().security_floor, floor, "{at}");
    assert_numbers_hold(&device, &at);

    // What was confirmed stays for longer than a boot loader tries out.
    for _ in 0..=device.parts.tries {
        device.power_cycle();
    }
    assert_eq!(device.agent.running_version(), expected.2, "{at}");
    was_cut
}

/// One number, one report; never a lower number later.
fn assert_numbers_hold(device: &Device, at: &str) {
    for pair in device.reports().windows(2) {
        let [one, next] = pair else { continue };
        if one.update_id == next.update_id && one.attempt == next.attempt {
            assert!(
                one.seq < next.seq || one == next,
                "{at}: {one:?} then {next:?}"
            );
        }
    }
    let persisted = device.done.iter().filter_map(|output| match output {
        Output::Persist(state) => Some(state.seq),
        _ => None,
    });
    assert!(persisted.is_sorted(), "{at}");
}

fn tell_with_every_cut(story: Story) {
    let cuts = (0..MAX_CUTS).take_while(|cut| tell(story, *cut)).count();
    assert!((8..MAX_CUTS).contains(&cuts), "{cuts} cuts");
}

#[test]
fn an_update_survives_a_power_cut_anywhere() {
    tell_with_every_cut(Story::Install);
}

#[test]
fn a_staged_update_survives_a_power_cut_anywhere() {
    tell_with_every_cut(Story::Stage);
}

#[test]
fn a_failing_update_survives_a_power_cut_anywhere() {
    tell_with_every_cut(Story::Unwell);
}

#[test]
fn a_rollback_with_a_permit_survives_a_power_cut_anywhere() {
    tell_with_every_cut(Story::Rollback);
}
