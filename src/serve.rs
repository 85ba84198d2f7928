//! Puts the parts together, runs them, and ends them in order: first the edges (HTTP, MQTT), so that nothing new
//! comes in, then the engine, which commits what it has taken, then the database.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::clock::random;
use device_ota_engine::ports::{Clock, Downlink, Entropy, EventSink, Store};
use device_ota_engine::{Engine, Grants, Parts, Settings};
use device_ota_http::{Access, Api, Component, Http, RateLimits};
use device_ota_mqtt::{Bus, Gateway, Limits, Link, LinkOptions, Sessions};
use device_ota_objects::LocalFolder;
use device_ota_store::{POSTGRES_MAX_CONNECTIONS, PostgresStore, SqliteStore};
use jiff::SignedDuration;
use sha2::Digest as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Broker, Config, Database, LogFormat};
use crate::data_dir::DataDir;
use crate::password_file::OwnUser;
use crate::screen::{self, Started};
use crate::system::{SystemClock, SystemEntropy};
use crate::{admin, keys, password_file, shutdown};

/// Runs the service until a signal.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(config));
    // What still blocks (a hash under way, a read of the disk) is not waited for.
    runtime.shutdown_background();
    outcome
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_new(&config.log).context("LOG is not a log filter")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Pretty => log.compact().init(),
    }
    Ok(())
}

/// The way to devices, before and after the engine exists.
enum Edge {
    Gateway(Gateway, Sessions),
    Link(Link),
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let keyring = match &config.keys {
        Some(given) => keys::given(given)?,
        None => keys::development(&data, clock.as_ref(), entropy.as_ref())?,
    };
    let admin_key = admin::key(&data, entropy.as_ref())?;
    let (store, database) = open_store(&config).await?;
    let objects = LocalFolder::open(&config.storage_path).context("STORAGE_BASE_PATH")?;
    let http = Http::bind(config.http_addr)
        .with_context(|| format!("HTTP_ADDR: cannot listen on {}", config.http_addr))?;
    let http_addr = http.local_addr();
    let edge = edge(&config, &data, entropy.as_ref())?;
    let bus = match config.bus_addr {
        Some(addr) => {
            let bus = Bus::start(addr, config.topic_prefix.clone()).await;
            Some(Arc::new(bus.context("MQTT_BUS_ADDR")?))
        }
        None => None,
    };
    let sinks = bus
        .iter()
        .map(|bus| bus.clone() as Arc<dyn EventSink>)
        .collect();
    let (engine, work) = Engine::new(Parts {
        store: store.clone(),
        objects: Arc::new(objects),
        downlink: edge.downlink(),
        sinks,
        clock: clock.clone(),
        entropy: entropy.clone(),
        keyring,
        grants: Grants::new(grant_key(&data, entropy.as_ref())?),
        settings: settings(&config, http_addr),
    });
    engine
        .reconcile_objects()
        .await
        .context("STORAGE_BASE_PATH")?;
    if let Edge::Gateway(..) = edge {
        engine.reset_presence().await?;
    }

    let started = Started {
        http: http_addr,
        mqtt: edge.local_addr(),
        broker: broker_name(&config),
        bus: bus.as_ref().map(|bus| bus.local_addr()),
        database,
        admin_key: &data.join(admin::FILE),
        development: config.keys.is_none(),
    };
    let api = Api {
        engine: engine.clone(),
        access: Access::admin_key(sha2::Sha256::digest(admin_key).into()),
        limits: RateLimits {
            per_address: config.rate_limit_api.map(Into::into),
            global: None,
        },
        version: env!("CARGO_PKG_VERSION"),
        run_id: hex::encode(random::<4>(entropy.as_ref())),
        components: components(http_addr, &edge, bus.clone()),
    };

    let (edges_stop, engine_stop) = (CancellationToken::new(), CancellationToken::new());
    let mut edges = Tasks::default();
    let stop = edges_stop.clone();
    edges.spawn("http", async move { http.serve(api, stop).await });
    edge.spawn(&mut edges, &engine, &edges_stop);
    if let Broker::External {
        url,
        password_file: Some(path),
    } = &config.broker
    {
        let own = own_user(&url.0);
        edges.spawn(
            "password_file",
            password_file::keep(engine.clone(), path.clone(), own, edges_stop.clone()),
        );
    }
    let mut core = Tasks::default();
    let stop = engine_stop.clone();
    core.spawn_checked("engine", async move {
        engine.run(work, stop).await.map_err(str::to_owned)
    });

    screen::show(&started);
    let failed = tokio::select! {
        signal = shutdown::asked() => {
            tracing::info!(signal = signal?, "ending");
            None
        }
        name = edges.one_ended() => Some(name),
        name = core.one_ended() => Some(name),
    };
    let orderly = async {
        edges_stop.cancel();
        edges.all_ended().await;
        engine_stop.cancel();
        core.all_ended().await;
    };
    if tokio::time::timeout(shutdown::GRACE, orderly)
        .await
        .is_err()
    {
        tracing::warn!(
            "some work did not end in time; what was not committed was not acknowledged"
        );
    }
    drop(bus);
    match failed {
        None => Ok(()),
        Some(name) => anyhow::bail!("{name} ended by itself; see the log"),
    }
}

/// Named background tasks.
#[derive(Default)]
struct Tasks {
    running: JoinSet<Result<(), String>>,
    names: BTreeMap<tokio::task::Id, &'static str>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_checked(name, async move {
            task.await;
            Ok(())
        });
    }

    fn spawn_checked(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The name of the first task that ends.
    async fn one_ended(&mut self) -> String {
        let Some(ended) = self.running.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "without an error".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(panic) => (panic.id(), panic.to_string()),
        };
        let name = self.names.get(&id).copied().unwrap_or("a task");
        tracing::error!(task = name, why, "a task ended by itself");
        name.to_owned()
    }

    async fn all_ended(&mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

impl Edge {
    fn downlink(&self) -> Arc<dyn Downlink> {
        match self {
            Self::Gateway(_, sessions) => Arc::new(sessions.clone()),
            Self::Link(link) => Arc::new(link.clone()),
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Gateway(gateway, _) => gateway.local_addr().ok(),
            Self::Link(_) => None,
        }
    }

    /// How it is, each time it is asked.
    fn health(&self) -> Box<dyn Fn() -> Component + Send + Sync> {
        let address = self.local_addr();
        match self {
            Self::Gateway(_, sessions) => {
                let sessions = sessions.clone();
                Box::new(move || Component {
                    name: "mqtt_gateway",
                    healthy: true,
                    essential: true,
                    detail: Some(format!("{} devices connected", sessions.connected())),
                    address,
                })
            }
            Self::Link(link) => {
                let link = link.clone();
                Box::new(move || Component {
                    name: "mqtt_broker",
                    healthy: link.connected(),
                    essential: true,
                    detail: (!link.connected())
                        .then(|| "the broker cannot be reached; it is tried again".to_owned()),
                    address,
                })
            }
        }
    }

    fn spawn(self, tasks: &mut Tasks, engine: &Arc<Engine>, stop: &CancellationToken) {
        let (engine, stop) = (engine.clone(), stop.clone());
        match self {
            Self::Gateway(gateway, _) => {
                tasks.spawn("gateway", async move { gateway.serve(engine, stop).await })
            }
            Self::Link(link) => tasks.spawn("link", async move { link.serve(engine, stop).await }),
        }
    }
}

fn edge(config: &Config, data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<Edge> {
    match &config.broker {
        Broker::Embedded { addr } => {
            let limits = Limits {
                max_connections: config.mqtt_max_connections as usize,
                heartbeat: config.rate_limit_heartbeat.map(Into::into),
                check: config.rate_limit_update_check.map(Into::into),
                ..Limits::default()
            };
            let sessions = Sessions::new(config.topic_prefix.clone(), limits);
            let gateway = Gateway::bind(*addr, sessions.clone(), limits)
                .with_context(|| format!("MQTT_ADDR: cannot listen on {addr}"))?;
            Ok(Edge::Gateway(gateway, sessions))
        }
        Broker::External { url, .. } => {
            // The broker keeps our session under this name while we are away, so it must outlive a restart.
            let (id, _) = data.private("instance.id", || Ok(hex::encode(random::<8>(entropy))))?;
            let options = LinkOptions::parse(&url.0, format!("device-ota-{}", id.trim()))
                .context("MQTT_BROKER")?;
            Ok(Edge::Link(Link::new(options, config.topic_prefix.clone())))
        }
    }
}

async fn open_store(config: &Config) -> anyhow::Result<(Arc<dyn Store>, String)> {
    Ok(match &config.database {
        Database::Sqlite(path) => {
            let store = SqliteStore::open_file(path)
                .await
                .with_context(|| format!("DATABASE_URL: {}", path.display()))?;
            (Arc::new(store), format!("SQLite, {}", path.display()))
        }
        Database::Postgres(url) => {
            let store = PostgresStore::open_url(&url.0, POSTGRES_MAX_CONNECTIONS)
                .await
                .context("DATABASE_URL")?;
            (Arc::new(store), "PostgreSQL".to_owned())
        }
    })
}

fn settings(config: &Config, http: SocketAddr) -> Settings {
    let public_url = config
        .public_url
        .clone()
        .unwrap_or_else(|| format!("http://{http}"));
    Settings {
        public_url,
        failure_threshold_percent: config.failure_threshold_percent,
        lease: SignedDuration::from_secs(config.lease_seconds.into()),
        ..Settings::default()
    }
}

fn grant_key(data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<[u8; 32]> {
    let (text, _) = data.private("keys/downloads.key", || {
        Ok(hex::encode(random::<32>(entropy)))
    })?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .context("keys/downloads.key does not hold 64 hex digits")?;
    Ok(key)
}

fn own_user(url: &str) -> Option<OwnUser> {
    let (user, _) = url.strip_prefix("mqtt://")?.rsplit_once('@')?;
    let (name, password) = user.split_once(':')?;
    Some(OwnUser {
        name: name.to_owned(),
        password: password.to_owned(),
    })
}

fn broker_name(config: &Config) -> Option<String> {
    match &config.broker {
        Broker::Embedded { .. } => None,
        Broker::External { url, .. } => {
            let host = url
                .0
                .rsplit_once('@')
                .map_or_else(|| url.0.trim_start_matches("mqtt://"), |(_, host)| host);
            Some(format!("mqtt://{host}"))
        }
    }
}

/// The parts that `/health/detailed` asks beside the engine.
fn components(
    http: SocketAddr,
    edge: &Edge,
    bus: Option<Arc<Bus>>,
) -> Arc<dyn Fn() -> Vec<Component> + Send + Sync> {
    let api = Component {
        name: "http",
        healthy: true,
        essential: true,
        detail: None,
        address: Some(http),
    };
    let edge = edge.health();
    Arc::new(move || {
        let bus = bus.as_ref().map(|bus| Component {
            name: "bus",
            healthy: bus.is_up(),
            essential: false,
            detail: None,
            address: Some(bus.local_addr()),
        });
        [api.clone(), edge()].into_iter().chain(bus).collect()
    })
}
