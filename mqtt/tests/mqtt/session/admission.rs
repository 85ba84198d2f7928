//! Who may come in, before the secret is looked at.

use std::time::Duration;

use device_ota_mqtt::codec::{Refusal, Version, read_connect};
use device_ota_mqtt::limits::{Limits, MAX_CONNECT};
use device_ota_mqtt::session::admit;
use device_ota_protocol::topics::Prefix;

use crate::wire::{BOTH, Connect};

fn admission(connect: &Connect<'_>) -> Result<(Duration, Option<u16>), Refusal> {
    let (connect, _) = read_connect(&connect.bytes(), MAX_CONNECT)
        .unwrap()
        .unwrap();
    let admission = admit(&connect, None, &Prefix::default(), &Limits::default())?;
    Ok((admission.silence, admission.offered.keep_alive))
}

#[test]
fn who_may_come_in() {
    for version in BOTH {
        let good = Connect::new(version, "d1", "s");
        let status = "ota/v1/d1/up/status";
        let with_will = |topic, qos, retain| Connect {
            will: Some((topic, qos, retain)),
            ..good.clone()
        };
        assert!(admission(&good).is_ok());
        assert!(admission(&with_will(status, 1, false)).is_ok());
        let retained = if version == Version::V5 {
            Err(Refusal::WillRetained)
        } else {
            Ok(())
        };
        let cases: &[(Connect<'_>, Result<(), Refusal>)] = &[
            (with_will(status, 1, true), retained),
            (with_will(status, 2, false), Err(Refusal::WillQos)),
            (
                with_will("ota/v1/d2/up/status", 1, false),
                Err(Refusal::WillNotAuthorized),
            ),
            (
                with_will("ota/v1/d1/up/progress", 1, false),
                Err(Refusal::WillNotAuthorized),
            ),
            (
                Connect {
                    user: None,
                    password: None,
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    password: None,
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    user: Some("a/b"),
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    client_id: "d2",
                    ..good.clone()
                },
                Err(Refusal::ClientId),
            ),
            (
                Connect {
                    client_id: "",
                    ..good.clone()
                },
                Err(Refusal::ClientId),
            ),
        ];
        for (connect, expected) in cases {
            assert_eq!(admission(connect).map(|_| ()), *expected, "{version:?}");
        }
    }
    let method = Connect {
        properties: &[21, 0, 1, b'x'],
        ..Connect::new(Version::V5, "d1", "s")
    };
    assert_eq!(admission(&method), Err(Refusal::AuthenticationMethod));
}

#[test]
fn a_certificate_tells_the_name() {
    for version in BOTH {
        let good = Connect::new(version, "d1", "any");
        let judged = |connect: &Connect<'_>, name: &str| {
            let (connect, _) = read_connect(&connect.bytes(), MAX_CONNECT)
                .unwrap()
                .unwrap();
            let name = name.parse().unwrap();
            let admitted = admit(
                &connect,
                Some(&name),
                &Prefix::default(),
                &Limits::default(),
            );
            admitted.map(|admission| admission.id.to_string())
        };
        let nameless = Connect {
            user: None,
            password: None,
            ..good.clone()
        };
        assert_eq!(judged(&good, "d1"), Ok("d1".to_owned()));
        assert_eq!(judged(&nameless, "d1"), Ok("d1".to_owned()));
        assert_eq!(judged(&good, "d2"), Err(Refusal::BadCredentials));
        assert_eq!(judged(&nameless, "d2"), Err(Refusal::ClientId));
    }
}

#[test]
fn how_long_a_device_may_be_silent() {
    let silence = |version, keep_alive| {
        let connect = Connect {
            keep_alive,
            ..Connect::new(version, "d1", "s")
        };
        admission(&connect).unwrap()
    };
    let seconds = Duration::from_secs;
    assert_eq!(silence(Version::V3, 60), (seconds(90), None));
    assert_eq!(silence(Version::V5, 60), (seconds(90), None));
    assert_eq!(silence(Version::V5, 0), (seconds(900), Some(600)));
    assert_eq!(silence(Version::V5, 5000), (seconds(900), Some(600)));
    // 3.1.1 cannot be told, so it keeps what it asked for; never is not something to ask for.
    assert_eq!(silence(Version::V3, 0).0, seconds(900));
    assert_eq!(silence(Version::V3, 5000).0, seconds(7500));
}
