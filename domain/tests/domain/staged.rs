//! Updates whose devices hold the image until they are told to activate it.

use device_ota_domain::campaign::{Group, Priority};
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{
    Action, Order, Outcome, Owed, Phase, Report, Reported, Retry, UpdateState,
};
use device_ota_domain::{CampaignId, Update, UpdateId};

use crate::sample::{
    LEASE, at, changed, failed, fails, failure, heard, offered, pending, says, staged, unheard,
};

fn activating() -> Update {
    staged().activate(at(100), LEASE).unwrap()
}

#[test]
fn it_holds_no_slot_and_is_activated_within_the_same_attempt() {
    let held = staged();
    assert_eq!((held.group(), held.status()), (Group::Staged, "staged"));
    assert_eq!((held.owed(), held.order()), (Some(Owed::Activation), None));
    let told = activating();
    assert_eq!(
        (told.attempt, told.last_seq, told.group()),
        (1, 1, Group::InFlight)
    );
    assert_eq!(told.order(), Some(Order::Activate));
    assert!(told.is_unanswered());
    let started = changed(told, &says(2, Reported::In(Phase::Rebooting)));
    assert!(!started.is_unanswered());
    let report = Report {
        version: Some("2.0.0".into()),
        ..says(3, Reported::Completed)
    };
    assert_eq!(changed(started, &report).group(), Group::Completed);
    assert!(offered().activate(at(100), LEASE).is_none());
    assert!(failed().activate(at(100), LEASE).is_none());
}

#[test]
fn what_it_has_downloaded_stays_downloaded() {
    let mut held = staged();
    held.progress.bytes_done = 10;
    let before = held.standing();
    let told = held.activate(at(100), LEASE).unwrap();
    assert_eq!(told.progress.bytes_earlier, 10);
    assert_ne!(before, told.standing());
}

#[test]
fn only_a_device_that_was_told_to_hold_is_staged_by_its_word() {
    let report = says(1, Reported::In(Phase::Staged));
    let update = changed(offered(), &report);
    assert_eq!(update.group(), Group::InFlight);
    // It waits for a word all the same, and gets it.
    assert_eq!(update.order(), Some(Order::Activate));
    let lost = update.expire(&unheard(3_610)).unwrap();
    assert_eq!(failure(&lost), ("device_lost", Group::Failed));
}

#[test]
fn it_waits_for_as_long_as_it_takes_and_repeats_nothing() {
    assert!(staged().expire(&unheard(1_000_000)).is_none());
    for said in [Reported::In(Phase::Staged), Reported::In(Phase::Rebooting)] {
        let outcome = staged().report(&says(2, said), at(30), LEASE);
        assert!(matches!(outcome, Outcome::Ignored(..)), "{outcome:?}");
    }
    // It failed over what it held, or started it by itself.
    let again = changed(staged(), &fails(2, Retry::Now));
    assert_eq!(failure(&again), ("install_failed", Group::Pending));
    let report = Report {
        version: Some("2.0.0".into()),
        ..says(2, Reported::Completed)
    };
    assert_eq!(changed(staged(), &report).group(), Group::Completed);
}

#[test]
fn whoever_is_away_when_it_is_told_holds_it_still() {
    let away = activating().expire(&unheard(230)).unwrap();
    assert_eq!(away.state, UpdateState::Staged { since: at(100) });
    let there = activating().expire(&heard(230)).unwrap();
    assert_eq!(there.group(), Group::InFlight);
    let mute = there.expire(&heard(3_700)).unwrap();
    assert_eq!(failure(&mute), ("timeout", Group::Pending));
    let back = away.activate(at(300), LEASE).unwrap();
    let started = changed(back, &says(2, Reported::In(Phase::Rebooting)));
    let gone = started.expire(&unheard(7_000)).unwrap();
    assert_eq!(failure(&gone), ("device_lost", Group::Failed));
}

#[test]
fn it_is_withdrawn_at_once_and_while_it_is_told() {
    assert_eq!(staged().cancel(at(30)).unwrap().group(), Group::Cancelled);
    assert_eq!(
        staged()
            .abandon(Exclusion::UnknownDevice, at(30))
            .unwrap()
            .group(),
        Group::Cancelled
    );
    let asked = activating().cancel(at(101)).unwrap();
    assert_eq!(asked.order(), Some(Order::Cancel));
    assert_eq!(
        changed(asked, &says(2, Reported::Cancelled)).group(),
        Group::Cancelled
    );
    // Whoever is asked to stop while it installs arrives, and is never told to start it.
    let mut preparing = pending();
    preparing = preparing
        .offer(&device_ota_domain::update::OfferTerms {
            now: at(10),
            lease: LEASE,
            running: None,
            hold: true,
        })
        .unwrap()
        .cancel(at(11))
        .unwrap();
    let arrived = changed(preparing, &says(1, Reported::In(Phase::Staged)));
    assert_eq!(arrived.group(), Group::Cancelled);
}

#[test]
fn it_gives_way_in_one_order_of_all_updates() {
    let held = staged();
    let other = |priority, made, id: u8| Update {
        id: UpdateId::from_entropy([id; 8]),
        campaign: Some(CampaignId::from_entropy([8; 8])),
        priority,
        created_at: at(made),
        ..pending()
    };
    let (normal, high) = (Priority::Normal, Priority::High);
    assert!(held.gives_way_to(&other(high, 9, 9)));
    assert!(!held.gives_way_to(&other(Priority::Low, -9, 0)));
    assert!(held.gives_way_to(&other(normal, -1, 9)));
    assert!(!held.gives_way_to(&other(normal, 1, 0)));
    assert!(held.gives_way_to(&other(normal, 0, 0)));
    assert!(!held.gives_way_to(&other(normal, 0, 9)));
    let back = Update {
        action: Action::Rollback,
        ..other(Priority::Low, 9, 9)
    };
    assert!(held.gives_way_to(&back));
    let single = Update {
        campaign: None,
        ..other(Priority::Low, 9, 9)
    };
    assert!(held.gives_way_to(&single));
    assert!(
        !offered().gives_way_to(&single),
        "what is in flight is finished"
    );
    let displaced = held.displace(at(40)).unwrap();
    assert_eq!(displaced.owed(), Some(Owed::Offer(at(40))));
    let again = displaced.offer(&crate::sample::terms(at(41))).unwrap();
    assert_eq!(again.attempt, 2);
}
