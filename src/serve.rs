//! Puts the parts together, runs them, and ends them in order: first the edges (HTTP, MQTT), so that nothing new
//! comes in, then the engine, which commits what it has taken, then the database.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use device_ota_domain::firmware::Storage;
use device_ota_engine::ports::clock::random;
use device_ota_engine::ports::{Clock, Entropy, EventSink, Store};
use device_ota_engine::{Engine, Grants, Member, Parts, Settings, Webhooks, Work};
use device_ota_http::{Api, Http, Seats};
use device_ota_mqtt::Bus;
use device_ota_platform::{HttpPoster, Nats};
use device_ota_store::{POSTGRES_MAX_CONNECTIONS, PostgresStore, SqliteStore};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Broker, Config, Database, LogFormat};
use crate::data_dir::DataDir;
use crate::edge::{self, Edge};
use crate::screen::{self, Started};
use crate::services::Services;
use crate::shutdown::{self, Signals};
use crate::system::{SystemClock, SystemEntropy};
use crate::tasks::Tasks;
use crate::tls::Keeper;
use crate::{access, admin, health, images, keys, open_files, replica};

/// Time that the database gets to close.
const CLOSING: Duration = Duration::from_millis(500);

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

/// What of the log is written.
pub(crate) fn log_filter(config: &Config) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&config.log).with_context(|| {
        format!(
            "LOG: {:?} is not a filter such as info,device_ota_mqtt=debug",
            config.log
        )
    })
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_filter(config)?)
        .with_writer(std::io::stderr)
        // It would be told where the log goes, which takes nothing then: to fail at that ends whoever has logged.
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Pretty => log.compact().init(),
    }
    std::panic::set_hook(Box::new(|panicked| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        let (at, said) = (panicked.location(), panicked.payload_as_str());
        let at = at.map(tracing::field::display);
        // The bus dies at each connection anew, until it is started again, which is told.
        if thread.starts_with(device_ota_mqtt::bus::THREAD) {
            tracing::debug!(panic.at = at, panic.said = said, "the bus has panicked");
        } else {
            tracing::error!(
                thread,
                panic.at = at,
                panic.said = said,
                "a part of the service has panicked"
            );
        }
    }));
    Ok(())
}

/// The parts, put together and not yet running.
struct Assembly {
    engine: Arc<Engine>,
    work: Work,
    http: Http,
    /// Of the HTTP listener.
    keeper: Option<Keeper>,
    internal: Option<Http>,
    api: Api,
    edge: Edge,
    bus: Option<Arc<Bus>>,
    nats: Option<Arc<Nats>>,
    services: Services,
    database: String,
    member: Member,
    data: DataDir,
    /// Fewer devices can be connected than should be.
    warning: Option<String>,
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let assembly = assemble(&config).await?;
    anyhow::ensure!(
        config.s3.is_some() || !assembly.engine.stores_in(Storage::S3).await?,
        "STORAGE_TYPE: images lie in a bucket; set STORAGE_TYPE=s3 and say by STORAGE_S3_… where it is"
    );
    assembly
        .engine
        .reconcile_objects()
        .await
        .context("STORAGE_BASE_PATH")?;
    assembly.engine.take_up().await?;
    assembly
        .engine
        .join(assembly.member.clone())
        .await
        .context("DATABASE_URL")?;
    let admin_key = assembly.data.join(admin::FILE);
    let started = Started {
        http: assembly.http.local_addr(),
        scheme: config.scheme(),
        internal: assembly.internal.as_ref().map(Http::local_addr),
        mqtt: assembly.edge.listening(),
        broker: edge::broker_name(&config),
        bus: assembly.bus.as_ref().map(|bus| bus.local_addr()),
        database: assembly.database.clone(),
        admin_key: &admin_key,
        development: config.keys.is_none(),
        warning: assembly.warning.clone(),
    };
    // Heard before anybody is told that we are ready, and may answer by one.
    let signals = Signals::listen()?;
    let engine = Arc::clone(&assembly.engine);
    let running = assembly.start(&config);
    screen::show(&started);
    let outcome = running.until_asked(signals).await;
    replica::leave(&engine).await;
    // A database in a file is left at rest; who still reads is not waited for.
    let _ = tokio::time::timeout(CLOSING, engine.close()).await;
    outcome
}

async fn assemble(config: &Config) -> anyhow::Result<Assembly> {
    let data = DataDir::open(&config.data_dir)?;
    let listeners = 1 + u8::from(config.internal_addr.is_some());
    let devices = match config.broker {
        Broker::Embedded { .. } => config.mqtt_max_connections,
        Broker::External { .. } => 0,
    };
    let room = open_files::room(devices, listeners)?;
    if let Some(warning) = &room.warning {
        tracing::warn!(devices.max = room.devices, "{warning}");
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let known = match &config.keys {
        Some(given) => Some(keys::given(given)?),
        None => keys::made(&config.data_dir).context("DATA_DIR")?,
    };
    let (store, database) = open_store(config).await?;
    let keyring = match known {
        Some(keyring) => keyring,
        None => keys::make(&data, store.as_ref(), clock.as_ref(), entropy.as_ref())
            .await
            .context("DATA_DIR")?,
    };
    let admin_key = admin::key(&data, entropy.as_ref())?;
    let downloads = keys::downloads(&data, entropy.as_ref())?;
    let grants = Grants::new(match &config.database {
        Database::Sqlite(_) => downloads,
        Database::Postgres(_) => keys::shared_downloads(store.as_ref(), downloads).await?,
    });
    let objects = images::open(config, store.as_ref(), entropy.as_ref()).await?;
    let mut http = Http::bind(config.http_addr)
        .with_context(|| format!("HTTP_ADDR: cannot listen on {}", config.http_addr))?;
    let keeper = config.http_tls.as_ref().map(Keeper::open).transpose()?;
    if let Some(keeper) = &keeper {
        http = http.secured(keeper.configs());
    }
    let internal = config.internal_addr.map(|addr| {
        Http::bind(addr).with_context(|| format!("INTERNAL_ADDR: cannot listen on {addr}"))
    });
    let internal = internal.transpose()?;
    let edge = Edge::open(config, &room, &data, entropy.as_ref())?;
    let member = replica::member(config, &edge, data.name(entropy.as_ref())?);
    let bus = open_bus(config).await?;
    let nats = open_nats(config, &clock).await?;
    let services = Services::open(config, http.local_addr(), &clock)?;
    let run_id = hex::encode(random::<4>(entropy.as_ref()));
    let (engine, work) = Engine::new(Parts {
        store,
        objects,
        downlink: edge.downlink(),
        sinks: sinks(bus.as_ref(), nats.as_ref()),
        device_service: services.devices(),
        clock: clock.clone(),
        entropy,
        keyring,
        grants,
        settings: settings(config, http.local_addr()),
    });
    let poster = HttpPoster::new(env!("CARGO_PKG_VERSION"), config.webhook_allow_private)
        .context("webhooks")?;
    let webhooks = Webhooks::new(engine.clone(), Arc::new(poster), config.webhook_tries);
    let api = Api {
        engine: engine.clone(),
        webhooks: Arc::new(webhooks),
        access: access::access(config, &admin_key, engine.clone(), services.auth(), clock)?,
        limits: config.rate_limits,
        seats: Seats::new(room.http, config.http_connections_per_address),
        cors: config.cors.clone(),
        version: env!("CARGO_PKG_VERSION"),
        run_id,
        components: health::components(
            &http,
            internal.as_ref().map(Http::local_addr),
            &edge,
            bus.clone(),
            keeper.as_ref().map(Keeper::standing),
            nats.clone(),
            services.clone(),
        ),
    };
    Ok(Assembly {
        engine,
        work,
        http,
        keeper,
        internal,
        api,
        edge,
        bus,
        nats,
        services,
        database,
        member,
        data,
        warning: room.warning,
    })
}

impl Assembly {
    /// Starts everything; the answer is what runs.
    fn start(self, config: &Config) -> Running {
        let Self {
            engine,
            work,
            http,
            keeper,
            internal,
            api,
            edge,
            bus,
            nats,
            services,
            data,
            ..
        } = self;
        let mut running = Running {
            edges: Tasks::default(),
            edges_stop: CancellationToken::new(),
            core: Tasks::default(),
            core_stop: CancellationToken::new(),
            _held: (bus, data),
        };
        if let Some(internal) = internal {
            let api = Api {
                access: api.access.clone().internal(),
                // Its request ids must not be those of the other listener.
                run_id: format!("{}i", api.run_id),
                ..api.clone()
            };
            let stop = running.edges_stop.clone();
            running.edges.spawn(
                "internal http",
                async move { internal.serve(api, stop).await },
            );
        }
        let (webhooks, stop) = (Arc::clone(&api.webhooks), running.edges_stop.clone());
        running
            .edges
            .spawn("webhooks", async move { webhooks.run(stop).await });
        let stop = running.edges_stop.clone();
        if let Some(keeper) = keeper {
            keeper.spawn("http_certificate", &mut running.edges, &engine, &stop);
        }
        running
            .edges
            .spawn("http", async move { http.serve(api, stop).await });
        if let Some(nats) = nats {
            let (engine, stop) = (engine.clone(), running.edges_stop.clone());
            running
                .edges
                .spawn("nats", async move { nats.serve(engine, stop).await });
        }
        services.spawn(&mut running.edges, &running.edges_stop);
        edge.spawn(config, &mut running.edges, &engine, &running.edges_stop);
        let stop = running.core_stop.clone();
        running.core.spawn_checked("engine", async move {
            engine.run(work, stop).await.map_err(str::to_owned)
        });
        running
    }
}

/// What runs, edges and core apart, and what must live as long.
struct Running {
    edges: Tasks,
    edges_stop: CancellationToken,
    core: Tasks,
    core_stop: CancellationToken,
    _held: (Option<Arc<Bus>>, DataDir),
}

impl Running {
    /// Waits for a signal, or for a part that ends by itself, then ends everything in order.
    async fn until_asked(mut self, mut signals: Signals) -> anyhow::Result<()> {
        let failed = tokio::select! {
            signal = signals.asked() => {
                tracing::info!(signal, "ending");
                None
            }
            name = self.edges.one_ended() => Some(name),
            name = self.core.one_ended() => Some(name),
        };
        let orderly = async {
            self.edges_stop.cancel();
            self.edges.all_ended().await;
            self.core_stop.cancel();
            self.core.all_ended().await;
        };
        if tokio::time::timeout(shutdown::GRACE, orderly)
            .await
            .is_err()
        {
            tracing::warn!(
                "some work did not end in time; what was not committed was not acknowledged"
            );
        }
        match failed {
            None => Ok(()),
            Some(name) => anyhow::bail!("{name} ended by itself; see the log"),
        }
    }
}

async fn open_bus(config: &Config) -> anyhow::Result<Option<Arc<Bus>>> {
    let Some(addr) = config.bus_addr else {
        return Ok(None);
    };
    let bus = Bus::start(addr, config.topic_prefix.clone())
        .await
        .context("MQTT_BUS_ADDR")?;
    Ok(Some(Arc::new(bus)))
}

async fn open_nats(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<Arc<Nats>>> {
    let Some(address) = config.nats.clone() else {
        return Ok(None);
    };
    let nats = Nats::connect(address, clock.clone()).await;
    let nats = nats
        .map_err(anyhow::Error::from_boxed)
        .context("NATS_URL")?;
    Ok(Some(Arc::new(nats)))
}

/// Whom the relay serves.
fn sinks(bus: Option<&Arc<Bus>>, nats: Option<&Arc<Nats>>) -> Vec<Arc<dyn EventSink>> {
    let bus = bus.map(|bus| bus.clone() as Arc<dyn EventSink>);
    let nats = nats.map(|nats| nats.clone() as Arc<dyn EventSink>);
    bus.into_iter().chain(nats).collect()
}

pub(crate) async fn open_store(config: &Config) -> anyhow::Result<(Arc<dyn Store>, String)> {
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

/// An `SQLite` file is one process's own; behind PostgreSQL another replica may take a secret back.
fn believed(database: &Database) -> Option<SignedDuration> {
    match database {
        Database::Sqlite(_) => None,
        Database::Postgres(_) => Settings::default().credentials_believed,
    }
}

fn settings(config: &Config, http: SocketAddr) -> Settings {
    let public_url = config
        .public_url
        .clone()
        .unwrap_or_else(|| format!("{}://{http}", config.scheme()));
    Settings {
        public_url,
        failure_threshold_percent: config.failure_threshold_percent,
        max_in_flight: config.max_concurrent_updates.map(u64::from),
        budgets: config.budgets.clone(),
        lease: SignedDuration::from_secs(config.lease_seconds.into()),
        offline_after: SignedDuration::from_secs(config.offline_after_seconds.into()),
        health_seconds: config.health_seconds,
        credentials_believed: believed(&config.database),
        rollback_timeout: hours(config.rollback_timeout_hours),
        broker_user: edge::own_user(config).map(|user| user.name),
        heartbeat_retention: SignedDuration::from_hours(
            24 * i64::from(config.heartbeat_retention_days),
        ),
        ..Settings::default()
    }
}

/// Hours and their fractions, to the microsecond as all times are.
fn hours(hours: f64) -> SignedDuration {
    let exact = std::time::Duration::from_secs_f64(hours * 3_600.0).as_micros();
    SignedDuration::from_micros(i64::try_from(exact).unwrap_or(i64::MAX))
}
