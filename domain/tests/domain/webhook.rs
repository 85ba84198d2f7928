//! Webhooks: what follows when nobody takes the event.

use device_ota_domain::WebhookId;
use device_ota_domain::webhook::{Failed, NotTaken, Patience, Webhook, WebhookStatus};
use jiff::SignedDuration;

use crate::sample::at;

fn webhook() -> Webhook {
    Webhook {
        id: WebhookId::from_entropy([1; 8]),
        url: "https://hooks.example.com/ota".into(),
        event_types: Vec::new(),
        campaign: None,
        status: WebhookStatus::Active,
        place: 6,
        trouble: None,
        delivered_at: None,
        created_at: at(0),
        created_by: "admin".into(),
        revision: 0,
        updated_at: at(0),
    }
}

fn refused() -> NotTaken {
    NotTaken::Refused("it answered 500".into())
}

fn away() -> NotTaken {
    NotTaken::Away("it answered 503".into())
}

/// Patience that spreads nothing.
fn patience(tries: u32) -> Patience {
    Patience { tries, spread: 0.0 }
}

#[test]
fn pauses_double_and_are_spread_until_the_event_is_laid_aside() {
    let mut hook = webhook();
    let mut now = at(0);
    let mut pauses = Vec::new();
    for spread in [0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] {
        let patience = Patience { tries: 12, spread };
        let Failed::Later(next) = hook.failed(7, &refused(), now, patience) else {
            panic!("it is tried again");
        };
        let trouble = next.trouble.as_ref().unwrap();
        assert_eq!((trouble.since, next.place), (at(0), 6));
        pauses.push(trouble.due_at.duration_since(now).as_millis());
        now = trouble.due_at;
        hook = next;
    }
    assert_eq!(
        pauses,
        [
            500, 2_000, 3_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000, 300_000
        ]
    );
    let Failed::Dead(next, letter) = hook.failed(7, &refused(), now, patience(12)) else {
        panic!("it is laid aside");
    };
    assert_eq!((letter.event, letter.tries, letter.at), (7, 12, now));
    assert_eq!(next.place, 7, "and the next one has its turn");
    let trouble = next.trouble.clone().unwrap();
    let after = SignedDuration::from_secs(150);
    assert_eq!(
        (trouble.tries, trouble.since, trouble.due_at),
        (0, at(0), now + after),
        "after a pause"
    );
    let next = next.delivered(8, now);
    assert_eq!(
        (next.place, next.trouble, next.delivered_at),
        (8, None, Some(now))
    );
}

#[test]
fn who_is_away_is_waited_for() {
    let (mut hook, mut now) = (webhook(), at(0));
    let mut pauses = Vec::new();
    while now < at(3_600) {
        let Failed::Later(next) = hook.failed(7, &away(), now, patience(1)) else {
            panic!("it is waited for");
        };
        let trouble = next.trouble.as_ref().unwrap();
        assert_eq!((trouble.tries, trouble.since, next.place), (0, at(0), 6));
        pauses.push(trouble.due_at.duration_since(now));
        now = trouble.due_at;
        hook = next;
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses[0].as_millis(), 500);
    assert_eq!(pauses.last().unwrap().as_secs(), 150);
    let Failed::Dead(..) = hook.failed(7, &refused(), now, patience(1)) else {
        panic!("it is back, and does not want it");
    };
}

#[test]
fn who_refuses_everything_gets_through_it_slowly() {
    let (mut hook, mut now) = (webhook(), at(0));
    for event in 7..57 {
        let Failed::Dead(next, _) = hook.failed(event, &refused(), now, patience(1)) else {
            panic!("it is laid aside");
        };
        now = next.trouble.as_ref().unwrap().due_at;
        hook = next;
    }
    assert!(now > at(3_600), "{now}");
}

#[test]
fn who_is_gone_is_disabled() {
    let Failed::Disabled(hook) = webhook().failed(7, &NotTaken::Gone, at(0), patience(8)) else {
        panic!("disabled");
    };
    let reason = "it answered 410 Gone".to_owned();
    assert_eq!(hook.status, WebhookStatus::Disabled { reason });
}

#[test]
fn who_takes_nothing_for_three_days_is_disabled() {
    for (why, says) in [(refused(), "500"), (away(), "503")] {
        let (mut hook, mut now) = (webhook(), at(0));
        let hook = loop {
            match hook.failed(7, &why, now, patience(1)) {
                Failed::Later(next) => hook = next,
                Failed::Dead(next, _) => hook = Webhook { place: 6, ..next },
                Failed::Disabled(disabled) => break disabled,
            }
            now += SignedDuration::from_mins(5);
        };
        assert_eq!(now, at(3 * 24 * 3_600));
        let reason = format!("nothing was taken for 3 days: it answered {says}");
        assert_eq!(hook.status, WebhookStatus::Disabled { reason });
        assert_eq!(hook.place, 6, "nothing more was passed over");
    }
}

#[test]
fn failures_far_apart_disable_nobody() {
    let mut hook = webhook();
    // It has something to take once in four days, and is in trouble each time.
    for day in [0, 4, 8] {
        let now = at(day * 24 * 3_600);
        let Failed::Later(next) = hook.failed(7, &refused(), now, patience(8)) else {
            panic!("it is tried again");
        };
        assert_eq!(
            next.trouble.as_ref().map(|trouble| trouble.since),
            Some(now)
        );
        hook = next;
    }
    assert_eq!(hook.trouble.map(|trouble| trouble.tries), Some(3));
}
