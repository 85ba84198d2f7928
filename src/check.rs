//! `device-ota config check`: what a start would say of its configuration, without a start. Reads and makes nothing: the
//! service may run meanwhile.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::Clock;
use device_ota_http::Access;
use device_ota_mqtt::LinkOptions;

use crate::config::{Broker, Config, Database};
use crate::services::Services;
use crate::system::SystemClock;
use crate::{access, admin, edge, keys, password_file, places, serve, tls};

/// Prints what the settings come to, and everything that is wrong with what they name.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    // Whoever reads only the beginning has gone by the end.
    writeln!(std::io::stdout(), "{config:#?}").ok();
    let mut told = std::io::stderr();
    for note in certificates(config).filter_map(|look| look.ok().flatten()) {
        writeln!(told, "{note}; it would be used all the same").ok();
    }
    let wrong = wrong(config);
    for error in &wrong {
        writeln!(told, "{}", crate::told(error)).ok();
    }
    anyhow::ensure!(wrong.is_empty(), "this configuration cannot be used");
    let nothing = "nothing is wrong with it; ports, database and other servers are not tried";
    writeln!(told, "{nothing}").ok();
    Ok(())
}

fn wrong(config: &Config) -> Vec<anyhow::Error> {
    let folder = &config.data_dir;
    let looks = [
        serve::log_filter(config).map(drop),
        signing_keys(config),
        places::can_hold(folder).context("DATA_DIR"),
        storage(config),
        database(config),
        made(folder),
        keys::check_made_downloads(folder).context("DATA_DIR"),
        access::tokens(config, Access::admin_key([0; 32])).map(drop),
        services(config),
        broker(config),
    ];
    let looks = looks.into_iter();
    let looks = looks.chain(certificates(config).map(|look| look.map(drop)));
    let wrong = looks.filter_map(Result::err);
    wrong.chain(shared_ports(&listeners(config))).collect()
}

fn signing_keys(config: &Config) -> anyhow::Result<()> {
    match &config.keys {
        Some(given) => keys::given(given).map(drop),
        None => keys::made(&config.data_dir).map(drop).context("DATA_DIR"),
    }
}

/// Of each, what a start tells of it and goes on.
fn certificates(config: &Config) -> impl Iterator<Item = anyhow::Result<Option<String>>> {
    let mqtt = match &config.broker {
        Broker::Embedded { tls, .. } => tls.as_ref().map(|tls| &tls.files),
        Broker::External { .. } => None,
    };
    let now = SystemClock.now();
    let files = config.http_tls.iter().chain(mqtt);
    files.map(move |files| tls::check(files, now))
}

/// Within the data folder it is as that one is.
fn storage(config: &Config) -> anyhow::Result<()> {
    let is_of_data = config.storage_path.starts_with(&config.data_dir);
    if is_of_data && places::can_hold(&config.data_dir).is_err() {
        return Ok(());
    }
    places::can_hold(&config.storage_path).context("STORAGE_BASE_PATH")
}

type Listener = (&'static str, SocketAddr);

/// By which setting each listens, and where.
fn listeners(config: &Config) -> Vec<Listener> {
    let (mqtt, mqtt_tls) = match &config.broker {
        Broker::Embedded { addr, tls } => (*addr, tls.as_ref().map(|tls| tls.addr)),
        Broker::External { .. } => (None, None),
    };
    let all = [
        ("HTTP_ADDR", Some(config.http_addr)),
        ("INTERNAL_ADDR", config.internal_addr),
        ("MQTT_ADDR", mqtt),
        ("MQTT_TLS_ADDR", mqtt_tls),
        ("MQTT_BUS_ADDR", config.bus_addr),
    ];
    let all = all.into_iter();
    all.filter_map(|(name, addr)| Some((name, addr?))).collect()
}

/// Of those that listen where one before them does.
fn shared_ports(listeners: &[Listener]) -> Vec<anyhow::Error> {
    let later = |n| listeners.iter().skip(n + 1);
    let pairs = listeners.iter().enumerate();
    let pairs = pairs.flat_map(|(n, first)| later(n).map(move |second| (first, second)));
    let clashing = pairs.filter(|((_, one), (_, other))| clash(*one, *other));
    clashing
        .map(|((first, taken), (second, addr))| {
            anyhow::anyhow!(
                "{second}: {addr} cannot be had beside {first}, which is {taken}; give each a port of its own"
            )
        })
        .collect()
}

/// Whether the system refuses the second of the two. Port 0 is one that is free.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    // Every address of the machine, in IPv6 those of IPv4 too.
    let takes = |all: SocketAddr, addr: SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || addr.is_ipv4())
    };
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || takes(one, other) || takes(other, one))
}

/// A file that a start opens, or makes in a folder that is there.
fn database(config: &Config) -> anyhow::Result<()> {
    let Database::Sqlite(path) = &config.database else {
        return Ok(());
    };
    let is_of_data = path.starts_with(&config.data_dir);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    anyhow::ensure!(
        !path.is_dir(),
        "DATABASE_URL: {} is a folder",
        path.display()
    );
    anyhow::ensure!(
        is_of_data || folder.is_none_or(Path::is_dir),
        "DATABASE_URL: the folder of {} is not there",
        path.display()
    );
    match folder {
        Some(folder) if !is_of_data => places::can_hold(folder).context("DATABASE_URL"),
        _ => Ok(()),
    }
}

fn made(folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(admin::FILE);
    if path.try_exists()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("DATA_DIR: {} cannot be read", path.display()))?;
        admin::read(&text, &path).context("DATA_DIR")?;
    }
    Ok(())
}

fn services(config: &Config) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Services::open(config, config.http_addr, &clock).map(drop)
}

fn broker(config: &Config) -> anyhow::Result<()> {
    let Broker::External {
        url,
        tls,
        password_file,
        ..
    } = &config.broker
    else {
        return Ok(());
    };
    if let Some(path) = password_file {
        password_file::check(path, &config.data_dir)?;
    }
    LinkOptions::parse(&url.0, "").context("MQTT_BROKER")?;
    let path = config.data_dir.join(edge::GROUPS);
    if path.try_exists()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("DATA_DIR: {} cannot be read", path.display()))?;
        edge::groups(&text, &path).context("DATA_DIR")?;
    }
    match tls {
        Some(tls) => tls::broker::config(tls).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_clash_as_the_system_has_it() {
        for (one, other, clashes) in [
            ("127.0.0.1:1883", "127.0.0.1:1883", true),
            ("127.0.0.1:1883", "127.0.0.1:1884", false),
            ("127.0.0.1:1883", "127.0.0.2:1883", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:1883", "127.0.0.1:1883", true),
            ("0.0.0.0:1883", "0.0.0.0:1883", true),
            ("0.0.0.0:1883", "[::1]:1883", false),
            ("[::]:1883", "127.0.0.1:1883", true),
            ("[::]:1883", "[::1]:1883", true),
        ] {
            let (one, other): (SocketAddr, SocketAddr) =
                (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(clash(one, other), clashes, "{one} {other}");
            assert_eq!(clash(other, one), clashes, "{other} {one}");
        }
    }
}
