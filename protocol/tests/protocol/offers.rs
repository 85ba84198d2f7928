//! What a device refuses, and what it says of it.

use device_ota_protocol::agent::{Config, Ignored, Input};
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::messages::{ErrorCode, Offer, Phase, Reply};
use device_ota_protocol::objects::{
    Action, Assignment, Release, RollbackPermit, Root, TimeStatement,
};
use device_ota_protocol::topics::Down;

use crate::harness::{Device, Service, hours, image_of, online, start};

/// Offers what `change` made of a good offer.
fn offered(change: impl FnOnce(&mut Release, &mut Assignment)) -> Device {
    let (mut service, mut device) = online();
    let mut release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    change(&mut release, &mut assignment);
    let digest = service.assign(&release, None).release_sha256;
    assignment.release_sha256 = digest;
    device.parts.by_itself = false;
    device.take(&service.offer(&release, &assignment));
    device
}

#[track_caller]
fn rejected(code: ErrorCode, change: impl FnOnce(&mut Release, &mut Assignment)) {
    let device = offered(change);
    assert_eq!(device.outcome(), (Phase::Rejected, Some(code)));
    assert!(device.downloads().is_empty());
}

#[test]
fn a_good_offer_is_taken() {
    let device = offered(|_, _| {});
    assert_eq!(device.outcome(), (Phase::Accepted, None));
}

#[test]
fn an_offer_for_something_else_is_rejected() {
    rejected(ErrorCode::WrongTarget, |_, a| {
        a.device_id = "frame-2".parse().expect("an id");
    });
    rejected(ErrorCode::WrongTarget, |r, _| {
        r.device_model = "SF-200".into();
    });
    rejected(ErrorCode::WrongTarget, |r, _| {
        r.manufacturer = "Other".into();
    });
    rejected(ErrorCode::WrongTarget, |r, _| {
        r.hw_revisions = vec!["r1".into()];
    });
    let fits = offered(|r, _| r.hw_revisions = vec!["r1".into(), "r2".into()]);
    assert_eq!(fits.outcome(), (Phase::Accepted, None));
}

#[test]
fn another_devices_offer_does_not_raise_the_sequence_number() {
    let device = offered(|_, a| {
        a.device_id = "frame-2".parse().expect("an id");
        a.seq = 1_000_000;
    });
    assert_eq!(device.agent.state().seq, 0);
}

#[test]
fn an_older_version_needs_a_rollback() {
    rejected(ErrorCode::DowngradeRefused, |r, _| {
        r.version = "1.9.0".into();
    });
    let back = offered(|r, a| {
        r.version = "1.9.0".into();
        a.action = Action::Rollback;
    });
    assert_eq!(back.outcome(), (Phase::Accepted, None));
}

#[test]
fn an_expired_offer_is_rejected_by_a_signed_clock() {
    rejected(ErrorCode::Expired, |_, a| a.expires_at = start());
}

#[test]
fn an_offer_for_tomorrow_waits() {
    let device = offered(|_, a| a.not_before = Some(start() + hours(1)));
    assert_eq!(
        device.outcome(),
        (Phase::Deferred, Some(ErrorCode::UserDeferred))
    );
    assert_eq!(device.last().retry_after_s, Some(3600));
}

#[test]
fn a_release_other_than_the_assigned_one_is_rejected() {
    let (mut service, mut device) = online();
    let assigned = Service::release("2.1.0", 1);
    let other = Service::release("2.2.0", 1);
    let assignment = service.assign(&assigned, Some(device.nonce()));
    device.take(&service.offer(&other, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Rejected, Some(ErrorCode::SignatureInvalid))
    );
}

#[test]
fn neither_key_alone_can_ship_code() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    let honest = service.offer(&release, &assignment);
    let stolen_dispatcher = Offer {
        release: Service::signed_by(&service.dispatch_key, &release),
        ..honest.clone()
    };
    let stolen_release_key = Offer {
        assignment: Service::signed_by(&service.release_key, &assignment),
        ..honest.clone()
    };
    for forged in [stolen_release_key, stolen_dispatcher] {
        device.take(&forged);
        assert_eq!(
            device.outcome(),
            (Phase::Rejected, Some(ErrorCode::SignatureInvalid))
        );
    }
    assert!(device.downloads().is_empty());
}

#[test]
fn a_forged_assignment_is_mentioned_once_and_never_during_an_update() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    let honest = service.offer(&release, &assignment);
    let forged = Offer {
        assignment: Service::signed_by(&Keypair::from_seed([9; 32]), &assignment),
        ..honest.clone()
    };
    device.take(&forged);
    device.take(&forged);
    assert_eq!(device.phases(), [Phase::Rejected]);
    assert_eq!(device.ignored(), [Ignored::NotVerified]);

    device.parts.by_itself = false;
    device.take(&honest);
    assert_eq!(device.outcome(), (Phase::Accepted, None));
    device.take(&forged);
    assert_eq!(device.outcome(), (Phase::Accepted, None));

    // Nor afterwards, about the update whose reports have numbers of their own.
    device.parts.by_itself = true;
    device.power_cycle();
    assert_eq!(device.outcome(), (Phase::Completed, None));
    device.take(&forged);
    assert_eq!(device.outcome(), (Phase::Completed, None));
}

#[test]
fn offers_from_the_past_are_replays_and_late_copies_are_not_worth_a_word() {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    let release = Service::release("2.1.0", 1);
    let nonce = device.nonce();
    let mut past = service.assign(&release, Some(nonce.clone()));
    past.update_id = "upd_0".into();
    let first = service.assign(&release, Some(nonce.clone()));
    let refresh = service.assign(&release, Some(nonce));
    device.take(&service.offer(&release, &refresh));
    let accepted = device.last();
    device.take(&service.offer(&release, &first));
    assert_eq!(device.ignored(), [Ignored::Replayed]);
    assert_eq!(device.last(), accepted);

    device.take(&service.offer(&release, &past));
    assert_eq!(
        device.outcome(),
        (Phase::Rejected, Some(ErrorCode::Replayed))
    );
    assert_eq!(device.last().update_id, "upd_0");

    // The same number with other content is no better.
    let mut twin = refresh.clone();
    twin.update_id = "upd_3".into();
    device.take(&service.offer(&release, &twin));
    assert_eq!(
        device.outcome(),
        (Phase::Rejected, Some(ErrorCode::Replayed))
    );

    // The very same offer again is a request to say again what became of it.
    device.take(&service.offer(&release, &refresh));
    assert_eq!(device.last(), accepted);
}

#[test]
fn a_stale_nonce_is_answered_by_a_new_check_and_not_too_often() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let checks = device.checks().len();
    for _ in 0..3 {
        let assignment = service.assign(&release, Some("another".into()));
        device.take(&service.offer(&release, &assignment));
    }
    assert_eq!(device.ignored(), [Ignored::StaleNonce; 3]);
    assert!(device.reports().is_empty());
    assert_eq!(device.checks().len(), checks, "the last one is too young");
    device.pass(10);
    assert_eq!(device.checks().len(), checks + 1);
    assert_eq!(
        device.agent.state().seq,
        0,
        "the next offer is not stale by number"
    );
}

#[test]
fn without_a_nonce_a_device_needs_a_clock() {
    let mut service = Service::new();
    let release = Service::release("2.1.0", 1);
    let mut device = Device::new(&service);
    device.boot();
    device.connect();
    let assignment = service.assign(&release, None);
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.ignored(), [Ignored::NoClock]);

    let trusted = Config {
        clock_trusted: true,
        ..Config::default()
    };
    let mut device = Device::with(&service, trusted, "2.0.0", 1);
    device.boot();
    device.connect();
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.outcome(), (Phase::Completed, None));
}

#[test]
fn an_unfit_device_defers_until_it_is_fit() {
    let (mut service, mut device) = online();
    let release = Service::release("2.1.0", 1);
    let low = |battery, free| Input::Conditions {
        battery_percent: battery,
        free_storage_bytes: free,
    };
    for (conditions, code) in [
        (low(Some(19.5), None), ErrorCode::LowBattery),
        (low(Some(80.0), Some(99)), ErrorCode::LowStorage),
    ] {
        device.feed(conditions);
        let mut assignment = service.assign(&release, Some(device.nonce()));
        assignment.requires.min_battery_percent = Some(20);
        assignment.requires.min_free_storage_bytes = Some(100);
        device.take(&service.offer(&release, &assignment));
        assert_eq!(device.outcome(), (Phase::Deferred, Some(code)));
        assert_eq!(device.last().retry_after_s, Some(900));
    }
    device.feed(low(Some(80.0), Some(1000)));
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(device.outcome(), (Phase::Completed, None));
    assert_eq!(
        device.last().seq,
        8,
        "one series of numbers for the attempt"
    );
}

#[test]
fn below_the_floor_only_with_a_permit_and_once() {
    let mut service = Service::new();
    let mut device = Device::with(&service, Config::default(), "3.0.0", 5);
    device.come_online(&service);
    let release = Service::release("2.9.0", 4);
    let permit = RollbackPermit {
        permit_id: "permit-1".into(),
        device_id: None,
        campaign_id: Some("cmp_1".into()),
        from_sha256: image_of("3.0.0"),
        to_sha256: image_of("2.9.0"),
        expires_at: start() + hours(24),
    };
    let refused = [
        None,
        Some(RollbackPermit {
            campaign_id: Some("cmp_2".into()),
            ..permit.clone()
        }),
        Some(RollbackPermit {
            from_sha256: image_of("2.8.0"),
            ..permit.clone()
        }),
        Some(RollbackPermit {
            to_sha256: image_of("2.8.0"),
            ..permit.clone()
        }),
        Some(RollbackPermit {
            expires_at: start(),
            ..permit.clone()
        }),
    ];
    let mut attempt = 0;
    let mut offer =
        |service: &mut Service, device: &mut Device, permit: Option<&RollbackPermit>| {
            attempt += 1;
            let mut assignment = service.assign(&release, Some(device.nonce()));
            assignment.action = Action::Rollback;
            assignment.attempt = attempt;
            let permit = permit.map(|p| Service::signed_by(&service.release_key, p));
            let offer = service.offer(&release, &assignment);
            device.take(&Offer { permit, ..offer });
            device.outcome()
        };
    for permit in &refused {
        let outcome = offer(&mut service, &mut device, permit.as_ref());
        assert_eq!(
            outcome,
            (Phase::Rejected, Some(ErrorCode::DowngradeRefused))
        );
    }
    // A permit is used up by the try, not by its success.
    device.parts.new_image_boots = false;
    let outcome = offer(&mut service, &mut device, Some(&permit));
    assert_eq!(outcome, (Phase::Failed, Some(ErrorCode::BootFailed)));
    device.parts.new_image_boots = true;
    let outcome = offer(&mut service, &mut device, Some(&permit));
    assert_eq!(
        outcome,
        (Phase::Rejected, Some(ErrorCode::DowngradeRefused))
    );

    let fresh = RollbackPermit {
        permit_id: "permit-2".into(),
        ..permit
    };
    assert_eq!(
        offer(&mut service, &mut device, Some(&fresh)),
        (Phase::Completed, None)
    );
    assert_eq!(device.agent.running_version(), "2.9.0");
    assert_eq!(
        device.agent.state().security_floor,
        5,
        "the floor does not sink"
    );
}

#[test]
fn bytes_that_are_no_offer_change_nothing() {
    let (_service, mut device) = online();
    let before = device.agent.state().clone();
    for payload in [&b""[..], b"{}", b"\xff\xff", b"{\"release\":1}"] {
        device.receive(Down::Offer, payload);
    }
    assert_eq!(device.ignored(), [Ignored::Malformed; 4]);
    assert_eq!(*device.agent.state(), before);
}

#[test]
fn an_attempt_that_is_over_does_not_come_back() {
    let (mut service, mut device) = online();
    device.parts.by_itself = false;
    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.attempt = 2;
    device.take(&service.offer(&release, &assignment));
    let first = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &first));
    assert_eq!(device.ignored(), [Ignored::StaleAttempt]);
    assert_eq!(device.last().attempt, 2);
}

#[test]
fn nothing_is_taken_by_a_root_that_has_expired() {
    let mut service = Service::new();
    let root = Root {
        expires_at: start() + hours(1),
        ..(*service.root).clone()
    };
    service.root = root.into();
    let mut device = Device::new(&service);
    device.come_online(&service);
    device.pass(3600);
    let release = Service::release("2.1.0", 1);
    let assignment = service.assign(&release, Some(device.nonce()));
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Rejected, Some(ErrorCode::Expired))
    );
}

#[test]
fn the_time_of_another_check_is_not_believed() {
    let mut service = Service::new();
    let mut device = Device::new(&service);
    device.boot();
    device.connect();
    let time = TimeStatement {
        now: start() - hours(9999),
        nonce: "old".into(),
    };
    let time = Service::signed_by(&service.dispatch_key, &time);
    let reply = Reply::offer_follows(Some(device.nonce()), 60).with_time(time);
    device.receive(Down::Reply, &reply.to_bytes());
    assert_eq!(device.agent.trusted_time(device.now), None);
    let mut forged = Reply::parse(&service.reply(&device.nonce(), start())).expect("a reply");
    if let Some(time) = &mut forged.time {
        time.signatures.clear();
    }
    device.receive(Down::Reply, &forged.to_bytes());
    assert_eq!(device.agent.trusted_time(device.now), None);
    assert_eq!(
        device.ignored(),
        [Ignored::StaleNonce, Ignored::NotVerified]
    );

    let release = Service::release("2.1.0", 1);
    let mut assignment = service.assign(&release, Some(device.nonce()));
    assignment.expires_at = start() - hours(1);
    device.take(&service.offer(&release, &assignment));
    assert_eq!(
        device.outcome(),
        (Phase::Completed, None),
        "fresh by its nonce alone"
    );
}
