//! TLS: devices and administrators speak it to the service, a device comes in by a certificate alone, and certificates
//! change while the service runs.

use std::path::Path;

use device_sim::fleet::Verdict;
use device_sim::mqtt::{Client, Error, Event, Options as Connecting, Tls, Topic, User, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls};

use crate::fleet::{arguments, image_file, run};
use crate::harness::{Authority, Certified, Options, Service, device_json, eventually, within};

matrix!(a_fleet_updates_over_tls_alone: sqlite_gateway, postgres_gateway);
matrix!(a_certificate_is_its_device_and_nobody_else: sqlite_gateway, postgres_gateway);
matrix!(certificates_change_while_devices_are_connected: sqlite_gateway);
matrix!(who_connects_by_an_address_does_not_fill_the_log: sqlite_gateway);

fn shown(path: &Path) -> String {
    path.display().to_string()
}

async fn a_fleet_updates_over_tls_alone(options: Options) {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "house");
    let own = authority.server("service");
    let options = options.with_https(&authority, &own).with_mqtts(&own);
    let service = Service::start(options.with("MQTT_ADDR", "off")).await;
    let ready = service.ready();
    assert_eq!(ready.mqtt, None);
    let screen = service.log().lines().join("\n");
    for said in [
        format!("https://{}", ready.http),
        format!("mqtts://{}", service.mqtts()),
    ] {
        assert!(screen.contains(&said), "{said}: {screen}");
    }

    let file = image_file(service.scratch(), "2.0.0");
    let ca = shown(&authority.file);
    let rollout = ["--rollout", file.to_str().unwrap(), "--to-version", "2.0.0"];
    let tls = ["--ca", &ca, "--chunks", "20%"];
    let arguments = arguments(&service, 10, &[&rollout[..], &tls].concat());
    let summary = run(arguments).await;
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&10));

    let admin = service.admin();
    let health = admin.get("/health/detailed").await.expect(200);
    assert_eq!(health["status"], "healthy");
    let parts = &health["components"];
    assert_eq!(parts["http"]["detail"], "https");
    assert_eq!(parts["mqtt_gateway_tls"]["detail"], "mqtts");
    for part in ["http_certificate", "mqtt_certificate"] {
        let detail = parts[part]["detail"].as_str();
        assert_eq!(detail, Some("expires at 2090-01-01T00:00:00Z"), "{parts:#}");
    }
    let figures = admin.figures().await;
    for listener in ["http", "mqtt"] {
        let line = format!(
            "device_ota_certificate_expiry_timestamp_seconds{{listener=\"{listener}\"}} 3786912000"
        );
        assert!(figures.contains(&line), "{figures}");
    }
    // Who speaks without TLS is not understood, and nobody is hurt.
    let plain = reqwest::get(format!("http://{}/health", ready.http)).await;
    assert!(plain.is_err(), "{plain:?}");
    assert!(
        connect(&service, None, "d", Some(("d", "s")))
            .await
            .is_err()
    );
    admin.get("/health/ready").await.expect(200);
}

/// A client of this name, with user name and secret or without.
async fn connect(
    service: &Service,
    tls: Option<Tls>,
    id: &str,
    user: Option<(&str, &str)>,
) -> Result<Client, Error> {
    let connecting = Connecting {
        server: service.mqtts(),
        tls,
        version: Version::V5,
        client_id: id.into(),
        user: user.map(|(name, secret)| User {
            name: name.into(),
            password: secret.as_bytes().to_vec().into(),
        }),
        will: None,
        keep_alive_s: 30,
    };
    within("an answer to CONNECT", Client::connect(&connecting)).await
}

/// It says something, and that is committed.
async fn is_served(client: &mut Client, id: &str) {
    let topic = Topic::try_from(format!("ota/v1/{id}/up/heartbeat").as_str()).unwrap();
    let beat = br#"{"version":"1.0.0"}"#;
    let said = client.publish(&topic, beat.as_slice().into()).unwrap();
    let heard = within("an acknowledgement", client.next()).await.unwrap();
    assert!(
        matches!(heard, Event::Acked { pid, accepted: true } if pid == said),
        "{heard:?}"
    );
}

/// How often the gateway has refused connections for this reason.
async fn refused(service: &Service, reason: &str) -> u64 {
    let health = service.admin().get("/health/detailed").await.expect(200);
    let refused = &health["counters"]["mqtt_refused"][reason];
    refused.as_u64().unwrap_or_default()
}

async fn a_certificate_is_its_device_and_nobody_else(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let (own, first, second) = (
        house.server("service"),
        house.device("frame-1"),
        house.device("frame-2"),
    );
    let (unknown, odd) = (house.device("frame-9"), house.device("a/b"));
    let crl = house.revoke(&[&second]);
    let strangers = TempDir::new().unwrap();
    let foreign = Authority::new(strangers.path(), "stranger").device("frame-1");
    let options = options
        .with_mqtts(&own)
        .with("MQTT_TLS_CLIENT_CA", shown(&house.file))
        .with("MQTT_TLS_CRL", shown(&crl));
    let mut service = Service::start(options.clone()).await;
    let known = service.register(device_json("frame-1")).await;
    service.register(device_json("frame-2")).await;
    service.register(device_json("frame-3")).await;

    // By its certificate alone; and with its name, whatever the secret.
    for user in [None, Some(("frame-1", "")), Some(("frame-1", "wrong"))] {
        let mut device = connect(&service, Some(house.tls(Some(&first))), "frame-1", user).await;
        is_served(device.as_mut().unwrap(), "frame-1").await;
    }
    // It is nobody else, whatever it knows.
    for (own, id, user, code) in [
        (&first, "frame-3", None, 0x85),
        (&first, "frame-1", Some(("frame-3", "")), 0x86),
        (&unknown, "frame-9", None, 0x86),
        (
            &odd,
            "frame-1",
            Some(("frame-1", known.password.as_str())),
            0x87,
        ),
    ] {
        let answer = connect(&service, Some(house.tls(Some(own))), id, user).await;
        assert!(
            matches!(answer, Err(Error::Refused(said)) if said == code),
            "{id}: {answer:?}"
        );
    }
    // These do not come as far as CONNECT.
    let secret = Some(("frame-1", known.password.as_str()));
    for (own, id) in [
        (Some(&second), "frame-2"),
        (Some(&foreign), "frame-1"),
        (None, "frame-1"),
    ] {
        let answer = connect(&service, Some(house.tls(own)), id, secret).await;
        assert!(matches!(answer, Err(Error::Io(_))), "{id}: {answer:?}");
    }
    assert_eq!(refused(&service, "tls_certificate").await, 3);

    // Deleted, it is no device of ours, whoever has signed for it.
    let mut device = connect(&service, Some(house.tls(Some(&first))), "frame-1", None)
        .await
        .unwrap();
    let deleted = service.admin().delete("/api/v1/ota/devices/frame-1").await;
    assert!(deleted.status < 300, "{deleted:?}");
    let ended = within("the session ends", device.next()).await;
    assert!(matches!(ended, Err(Error::Disconnected(0x98))), "{ended:?}");
    let answer = connect(&service, Some(house.tls(Some(&first))), "frame-1", None).await;
    assert!(matches!(answer, Err(Error::Refused(0x86))), "{answer:?}");

    // Where no certificate is required, a secret proves what a certificate would.
    service.stop().await;
    service.reconfigure(options.with("MQTT_TLS_CLIENT_AUTH", "optional"));
    service.start_again().await;
    let known = service.register(device_json("frame-4")).await;
    let tls = || Some(house.tls(None));
    let secret = Some(("frame-4", known.password.as_str()));
    let mut device = connect(&service, tls(), "frame-4", secret).await.unwrap();
    is_served(&mut device, "frame-4").await;
    for user in [None, Some(("frame-4", "wrong"))] {
        let answer = connect(&service, tls(), "frame-4", user).await;
        assert!(matches!(answer, Err(Error::Refused(0x86))), "{answer:?}");
    }
    let answer = connect(&service, Some(house.tls(Some(&foreign))), "frame-4", secret).await;
    assert!(matches!(answer, Err(Error::Io(_))), "{answer:?}");
}

/// The certificate that a listener shows to whoever comes now.
async fn shows(address: &str, tls: &Tls) -> CertificateDer<'static> {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(tls.config.clone());
    let stream = connector.connect(tls.name.clone(), stream).await.unwrap();
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn until_shown(address: &str, tls: &Tls, own: &Certified) {
    let wanted = CertificateDer::from_pem_file(&own.cert).unwrap();
    eventually("the new certificate is shown", async || {
        let shown = shows(address, tls).await;
        (shown == wanted)
            .then_some(())
            .ok_or_else(|| "the old one".to_owned())
    })
    .await;
}

async fn certificates_change_while_devices_are_connected(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let (http, mqtt) = (house.server("http"), house.server("mqtt"));
    let devices = ["frame-1", "frame-2"].map(|id| house.device(id));
    let crl = house.revoke(&[]);
    let options = options
        .with_https(&house, &http)
        .with_mqtts(&mqtt)
        .with("MQTT_TLS_CLIENT_CA", shown(&house.file))
        .with("MQTT_TLS_CRL", shown(&crl))
        .expecting_error("the changed certificate files cannot be used");
    let service = Service::start(options).await;
    for id in ["frame-1", "frame-2"] {
        service.register(device_json(id)).await;
    }
    let [first, second] = devices.each_ref().map(|own| house.tls(Some(own)));
    let mut device = connect(&service, Some(first.clone()), "frame-1", None)
        .await
        .unwrap();

    // Both listeners show what lies there now, and who is connected stays.
    let (https, mqtts) = (service.ready().http.clone(), service.mqtts().to_string());
    until_shown(&https, &first, &house.server("http")).await;
    until_shown(&mqtts, &first, &house.server_until("mqtt", 2089)).await;
    is_served(&mut device, "frame-1").await;
    let component = async |name: &str| {
        let health = service.admin().get("/health/detailed").await.expect(200);
        health["components"][name].clone()
    };
    let detail = component("mqtt_certificate").await;
    assert_eq!(detail["detail"], "expires at 2089-01-01T00:00:00Z");

    // What cannot be used is told, once, and changes nothing.
    std::fs::write(&mqtt.key, "no key").unwrap();
    let told = service.log().find(|line| {
        let told = line.contains("the changed certificate files cannot be used");
        told.then(|| line.to_owned())
    });
    let told = within("what is wrong is told", told).await.unwrap();
    assert!(told.contains("MQTT_TLS_KEY"), "{told}");
    let state = component("mqtt_certificate").await;
    assert_eq!(state["status"], "unhealthy", "{state:#}");
    let mut other = connect(&service, Some(second.clone()), "frame-2", None)
        .await
        .unwrap();
    is_served(&mut other, "frame-2").await;

    // A device that is revoked comes in no more; its next connection is what is looked at.
    until_shown(&mqtts, &first, &house.server("mqtt")).await;
    house.revoke(&[&devices[1]]);
    eventually("the revoked device is turned away", async || match connect(
        &service,
        Some(second.clone()),
        "frame-2",
        None,
    )
    .await
    {
        Err(Error::Io(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    is_served(&mut device, "frame-1").await;
    connect(&service, Some(first), "frame-1", None)
        .await
        .unwrap();

    // One that has expired is told, and used: whoever does not look at the date need not be kept out.
    until_expired(&service, &house).await;
}

async fn until_expired(service: &Service, house: &Authority) {
    house.server_until("mqtt", 2001);
    let said = service.log().find(|line| {
        let told = line.contains("expires soon, or has expired");
        told.then_some(())
    });
    within("that it has expired is told", said).await.unwrap();
    let health = service.admin().get("/health/detailed").await.expect(200);
    assert_eq!(health["status"], "degraded");
    let state = &health["components"]["mqtt_certificate"];
    assert_eq!(state["detail"], "expired at 2001-01-01T00:00:00Z");
}

/// What a client says first that names an IP address where TLS has a host name, as some do.
fn hello_by_address(tls: &Tls) -> Vec<u8> {
    let name = "127x0x0x1";
    let server = ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(tls.config.clone(), server).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let place = hello.windows(name.len());
    let place = place
        .clone()
        .position(|part| part == name.as_bytes())
        .unwrap();
    hello[place..place + name.len()].copy_from_slice(b"127.0.0.1");
    hello
}

async fn who_connects_by_an_address_does_not_fill_the_log(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let options = options.with_mqtts(&house.server("service"));
    let hello = hello_by_address(&house.tls(None));
    for (options, is_told) in [
        (options.clone(), false),
        (options.with("LOG", "info,rumqttd=off"), true),
    ] {
        let mut service = Service::start(options).await;
        let mut stream = TcpStream::connect(service.mqtts()).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut answer = [0; 1];
        let read = stream.read_exact(&mut answer);
        within("the service goes on with it", read).await.unwrap();
        assert_eq!(answer, [22], "a handshake, and no alert");
        service.stop().await;
        // All that it has said.
        let never = service.log().find(|_| None::<()>);
        within("the log ends", never).await;
        let told = service.log().lines().join("\n");
        assert_eq!(told.contains("Illegal SNI"), is_told, "{told}");
    }
}
