//! What is wrong with a configuration is told before a start, and nothing is touched.

use std::path::Path;

use crate::harness::{Authority, Options, Service};

matrix!(what_a_start_would_refuse_is_told_without_one: sqlite_gateway, postgres_mosquitto);
matrix!(what_an_earlier_start_made_is_looked_at_too: sqlite_gateway);
matrix!(what_is_wrong_with_certificates_is_told_by_name: sqlite_gateway);

async fn what_a_start_would_refuse_is_told_without_one(options: Options) {
    let service = Service::start(options).await;
    let none = service.scratch().join("none");
    for words in [&["check-config"][..], &["config", "check"]] {
        let (usable, said) = service.said(&none, &[], words).await;
        assert!(usable, "{said}");
        assert!(!none.exists(), "nothing is made");
        // Also of one that is in use.
        let (usable, said) = service.said(&service.data_dir(), &[], words).await;
        assert!(usable, "{said}");
    }

    let path = |name: &str| service.scratch().join(name).display().to_string();
    let (missing, odd) = (path("missing/key.pem"), path("odd.pem"));
    std::fs::write(&odd, "no key").unwrap();
    let within_a_file = path("odd.pem/data");
    let database = format!("sqlite:{missing}");
    for (settings, names) in [
        (vec![("LOG", "device_ota=loud")], "LOG: "),
        (
            vec![("MQTT_BROKER", "mqtt://ota:secret@broker:port")],
            "MQTT_BROKER: ",
        ),
        (
            vec![("MQTT_BROKER", "mqtt://ota:%ff@broker")],
            "MQTT_BROKER: ",
        ),
        (
            vec![("JWT_PUBLIC_KEY", missing.as_str())],
            "JWT_PUBLIC_KEY: ",
        ),
        (vec![("JWT_PUBLIC_KEY", odd.as_str())], "JWT_PUBLIC_KEY: "),
        (
            vec![
                ("TRUST_ROOT", missing.as_str()),
                ("DISPATCH_KEY", odd.as_str()),
            ],
            "DISPATCH_KEY: ",
        ),
        (
            vec![("STORAGE_BASE_PATH", odd.as_str())],
            "STORAGE_BASE_PATH: ",
        ),
        (vec![("DATABASE_URL", database.as_str())], "DATABASE_URL: "),
        (vec![("DATABASE_URL", "postgres://")], "DATABASE_URL: "),
        (
            vec![("DATABASE_URL", "postgres://ota:secret@#@db/ota")],
            "DATABASE_URL: has a #",
        ),
        (
            vec![("DATABASE_URL", "postgres://ota:secret@db:99999/ota")],
            "DATABASE_URL: cannot be read (invalid port",
        ),
        (vec![("DATA_DIR", within_a_file.as_str())], "DATA_DIR: "),
        // Not even root can.
        (vec![("DATA_DIR", "/proc/ota")], "DATA_DIR: /proc "),
        (
            vec![("STORAGE_BASE_PATH", "/proc/ota/storage")],
            "STORAGE_BASE_PATH: /proc ",
        ),
        (
            vec![
                ("MQTT_BROKER", "mqtt://ota:secret@broker"),
                ("MQTT_PASSWORD_FILE", missing.as_str()),
            ],
            "MQTT_PASSWORD_FILE: ",
        ),
        (
            vec![
                ("HTTP_ADDR", "127.0.0.1:8216"),
                ("MQTT_BUS_ADDR", "127.0.0.1:8216"),
            ],
            "MQTT_BUS_ADDR: 127.0.0.1:8216 cannot be had beside HTTP_ADDR",
        ),
        (
            vec![
                ("HTTP_ADDR", "0.0.0.0:8216"),
                ("PUBLIC_URL", "http://ota.example.com:8216"),
                ("INTERNAL_ADDR", "127.0.0.1:8216"),
            ],
            "INTERNAL_ADDR: 127.0.0.1:8216 cannot be had beside HTTP_ADDR",
        ),
    ] {
        let (usable, said) = service.said(&none, &settings, &["config", "check"]).await;
        assert!(!usable, "{settings:?}: {said}");
        let told = said.lines().any(|line| {
            let line = line.strip_prefix("device-ota: ").unwrap_or(line);
            line.starts_with(names)
        });
        assert!(told, "{settings:?}: {said}");
        assert!(!said.contains("secret@"), "{said}");
        assert!(!none.exists(), "nothing is made");
    }

    // All of it at once.
    let settings = [
        ("LOG", "device_ota=loud"),
        ("JWT_PUBLIC_KEY", missing.as_str()),
    ];
    let (_, said) = service.said(&none, &settings, &["config", "check"]).await;
    assert!(
        said.contains("LOG: ") && said.contains("JWT_PUBLIC_KEY: "),
        "{said}"
    );
}

/// Somebody has spoilt it since.
async fn what_an_earlier_start_made_is_looked_at_too(options: Options) {
    let service = Service::start(options).await;
    let none = service.scratch().join("none");
    let (usable, said) = service.said(&none, &[], &["--help"]).await;
    let told = said.lines().any(|line| line.trim().starts_with("config "));
    assert!(usable && told, "{said}");
    let spoilt = service.scratch().join("spoilt");
    std::fs::create_dir_all(spoilt.join("keys")).unwrap();
    for (name, names) in [
        ("admin.key", "admin.key"),
        ("keys/root.pem", "root.pem"),
        ("keys/downloads.key", "downloads.key"),
    ] {
        let file = spoilt.join(name);
        std::fs::write(&file, "short").unwrap();
        let (usable, said) = service.said(&spoilt, &[], &["config", "check"]).await;
        assert!(!usable && said.contains(names), "{said}");
        std::fs::remove_file(file).unwrap();
    }
    std::fs::write(spoilt.join("mqtt.groups"), "ota\nnot/one\n").unwrap();
    let settings = [("MQTT_BROKER", "mqtt://device-ota:x@127.0.0.1:1")];
    let (usable, said) = service.said(&spoilt, &settings, &["config", "check"]).await;
    assert!(!usable && said.contains("mqtt.groups"), "{said}");
}

async fn what_is_wrong_with_certificates_is_told_by_name(options: Options) {
    let service = Service::start(options).await;
    let house = Authority::new(service.scratch(), "house");
    let [own, other] = ["own", "other"].map(|name| house.server(name));
    let expired = house.server_until("expired", 2001);
    let crl = house.revoke(&[&other]);
    let text = |path: &Path| path.display().to_string();
    let odd = text(&service.scratch().join("odd.pem"));
    std::fs::write(&odd, "neither certificate nor key").unwrap();
    let missing = text(&service.scratch().join("missing.pem"));
    let good = [
        ("HTTP_TLS_CERT", text(&own.cert)),
        ("HTTP_TLS_KEY", text(&own.key)),
        ("MQTT_TLS_ADDR", "127.0.0.1:0".to_owned()),
        ("MQTT_TLS_CERT", text(&own.cert)),
        ("MQTT_TLS_KEY", text(&own.key)),
        ("MQTT_TLS_CLIENT_CA", text(&house.file)),
        ("MQTT_TLS_CRL", text(&crl)),
    ];
    let none = service.scratch().join("none");
    let judged = async |changes: &[(&str, &str)]| {
        let mut settings: Vec<_> = good.iter().map(|(n, v)| (*n, v.as_str())).collect();
        for (name, value) in changes {
            settings.retain(|(known, _)| known != name);
            settings.push((name, value));
        }
        service.said(&none, &settings, &["config", "check"]).await
    };
    let (usable, said) = judged(&[]).await;
    assert!(usable, "{said}");
    let (cert, key) = (text(&other.cert), text(&own.key));
    let (old, old_key) = (text(&expired.cert), text(&expired.key));
    for (changes, name, what) in [
        (
            vec![("HTTP_TLS_CERT", missing.as_str())],
            "HTTP_TLS_CERT: ",
            "cannot be read",
        ),
        (
            vec![("HTTP_TLS_KEY", missing.as_str())],
            "HTTP_TLS_KEY: ",
            "cannot be read",
        ),
        (
            vec![("HTTP_TLS_CERT", key.as_str())],
            "HTTP_TLS_CERT: ",
            "no certificate",
        ),
        (
            vec![("MQTT_TLS_KEY", odd.as_str())],
            "MQTT_TLS_KEY: ",
            "no key",
        ),
        (
            vec![("MQTT_TLS_CERT", cert.as_str())],
            "MQTT_TLS_KEY: ",
            "is not the key",
        ),
        (
            vec![("MQTT_TLS_CLIENT_CA", odd.as_str())],
            "MQTT_TLS_CLIENT_CA: ",
            "no certificate",
        ),
        (
            vec![("MQTT_TLS_CRL", cert.as_str())],
            "MQTT_TLS_CRL: ",
            "no revocation list",
        ),
    ] {
        let (usable, said) = judged(&changes).await;
        assert!(!usable, "{changes:?}: {said}");
        let told = said
            .lines()
            .any(|line| line.starts_with(name) && line.contains(what));
        assert!(told, "{changes:?}: {said}");
    }

    let files = [&house.file, &own.cert, &own.key, &other.cert].map(|file| text(file));
    told_of_the_brokers(
        &service,
        [&odd, &missing],
        files.each_ref().map(String::as_str),
    )
    .await;

    // A start would use it and say so, as whoever does not look at dates need not be kept out.
    let expired = [
        ("MQTT_TLS_CERT", old.as_str()),
        ("MQTT_TLS_KEY", old_key.as_str()),
    ];
    let (usable, said) = judged(&expired).await;
    assert!(usable, "{said}");
    assert!(
        said.contains("MQTT_TLS_CERT: expired at 2001-01-01"),
        "{said}"
    );
}

/// The same of what is shown to a broker, and by what it is believed.
async fn told_of_the_brokers(
    service: &Service,
    [odd, missing]: [&str; 2],
    [ca, cert, key, other]: [&str; 4],
) {
    let none = service.scratch().join("none");
    let judged = async |settings: &[(&str, &str)]| {
        let broker = [
            ("MQTT_BROKER", "mqtts://ota:secret@broker"),
            ("MQTT_BROKER_CA", ca),
        ];
        let settings = [&broker[..], settings].concat();
        service.said(&none, &settings, &["config", "check"]).await
    };
    let (usable, said) = judged(&[("MQTT_BROKER_CERT", cert), ("MQTT_BROKER_KEY", key)]).await;
    assert!(usable, "{said}");
    for (changes, name, what) in [
        (
            vec![("MQTT_BROKER_CA", missing)],
            "MQTT_BROKER_CA: ",
            "cannot be read",
        ),
        (
            vec![("MQTT_BROKER_CA", odd)],
            "MQTT_BROKER_CA: ",
            "no certificate",
        ),
        (
            vec![("MQTT_BROKER_CERT", odd), ("MQTT_BROKER_KEY", key)],
            "MQTT_BROKER_CERT: ",
            "no certificate",
        ),
        (
            vec![("MQTT_BROKER_CERT", other), ("MQTT_BROKER_KEY", key)],
            "MQTT_BROKER_KEY: ",
            "is not the key",
        ),
    ] {
        let (usable, said) = judged(&changes).await;
        let told = said
            .lines()
            .any(|line| line.starts_with(name) && line.contains(what));
        assert!(!usable && told, "{changes:?}: {said}");
    }
}
