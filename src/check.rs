//! `device-ota check-config`: what a start would say of its configuration, without a start. Reads and makes nothing: the
//! service may run meanwhile.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::Clock;
use device_ota_http::Access;
use device_ota_mqtt::LinkOptions;

use crate::config::{Broker, Config, Database};
use crate::services::Services;
use crate::system::SystemClock;
use crate::{access, admin, edge, keys, serve, tls};

/// Prints what the settings come to, and everything that is wrong with what they name.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    // Whoever reads only the beginning has gone by the end.
    writeln!(std::io::stdout(), "{config:#?}").ok();
    for note in certificates(config).filter_map(|look| look.ok().flatten()) {
        eprintln!("{note}; it would be used all the same");
    }
    let wrong = wrong(config);
    for error in &wrong {
        eprintln!("{error:#}");
    }
    anyhow::ensure!(wrong.is_empty(), "this configuration cannot be used");
    eprintln!("nothing is wrong with it; ports, database and other servers are not tried");
    Ok(())
}

fn wrong(config: &Config) -> Vec<anyhow::Error> {
    let folder = &config.data_dir;
    let looks = [
        serve::log_filter(config).map(drop),
        signing_keys(config),
        is_folder(folder).context("DATA_DIR"),
        is_folder(&config.storage_path).context("STORAGE_BASE_PATH"),
        database(config),
        made(folder),
        keys::check_made_downloads(folder).context("DATA_DIR"),
        access::tokens(config, Access::admin_key([0; 32])).map(drop),
        services(config),
        broker(config),
    ];
    let looks = looks.into_iter();
    let looks = looks.chain(certificates(config).map(|look| look.map(drop)));
    looks.filter_map(Result::err).collect()
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

/// One that is missing, a start makes.
fn is_folder(path: &Path) -> anyhow::Result<()> {
    let found = path.try_exists();
    let found = found.with_context(|| format!("{} cannot be looked at", path.display()))?;
    anyhow::ensure!(
        !found || path.is_dir(),
        "{} is not a folder",
        path.display()
    );
    Ok(())
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
    Ok(())
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
    let Broker::External { url, tls, .. } = &config.broker else {
        return Ok(());
    };
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
