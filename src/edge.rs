//! The way to devices: our own gateway, or the link to an external broker.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::Engine;
use device_ota_engine::ports::clock::random;
use device_ota_engine::ports::{Downlink, Entropy};
use device_ota_http::Component;
use device_ota_mqtt::{Gateway, Limits, Link, LinkOptions, Sessions};
use tokio_util::sync::CancellationToken;

use crate::config::{Broker, Config};
use crate::data_dir::DataDir;
use crate::open_files::Room;
use crate::password_file::{self, OwnUser};
use crate::tasks::Tasks;

/// The way to devices, before and after the engine exists.
pub(crate) enum Edge {
    Gateway(Box<Gateway>, Sessions),
    Link(Link),
}

impl Edge {
    pub(crate) fn downlink(&self) -> Arc<dyn Downlink> {
        match self {
            Self::Gateway(_, sessions) => Arc::new(sessions.clone()),
            Self::Link(link) => Arc::new(link.clone()),
        }
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Gateway(gateway, _) => gateway.local_addr().ok(),
            Self::Link(_) => None,
        }
    }

    /// How it is, each time it is asked.
    pub(crate) fn health(&self) -> Box<dyn Fn() -> Component + Send + Sync> {
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

    /// Whether a start means that no device is connected: a broker keeps its sessions without us.
    pub(crate) const fn forgets_sessions(&self) -> bool {
        matches!(self, Self::Gateway(..))
    }

    /// Serves devices until `stop`.
    pub(crate) fn spawn(
        self,
        config: &Config,
        tasks: &mut Tasks,
        engine: &Arc<Engine>,
        stop: &CancellationToken,
    ) {
        let (engine, stop) = (engine.clone(), stop.clone());
        if let Broker::External {
            password_file: Some(path),
            ..
        } = &config.broker
        {
            let own = own_user(config);
            let keeping = password_file::keep(engine.clone(), path.clone(), own, stop.clone());
            tasks.spawn("password_file", keeping);
        }
        match self {
            Self::Gateway(gateway, _) => {
                tasks.spawn("gateway", async move { gateway.serve(engine, stop).await });
            }
            Self::Link(link) => tasks.spawn("link", async move { link.serve(engine, stop).await }),
        }
    }

    /// Opens what the configuration names.
    pub(crate) fn open(
        config: &Config,
        room: &Room,
        data: &DataDir,
        entropy: &dyn Entropy,
    ) -> anyhow::Result<Self> {
        let limits = Limits {
            max_connections: room.devices,
            max_unauthenticated: room.strangers,
            max_lingering: room.lingering,
            heartbeat: config.rate_limit_heartbeat,
            check: config.rate_limit_update_check,
            ..Limits::default()
        };
        match &config.broker {
            Broker::Embedded { addr } => {
                let sessions = Sessions::new(config.topic_prefix.clone(), limits);
                let gateway = Gateway::bind(*addr, sessions.clone(), limits)
                    .with_context(|| format!("MQTT_ADDR: cannot listen on {addr}"))?;
                Ok(Self::Gateway(Box::new(gateway), sessions))
            }
            Broker::External { url, .. } => {
                // The broker keeps our session under this name while we are away, so it must outlive a restart.
                let (id, _) =
                    data.private("instance.id", || Ok(hex::encode(random::<8>(entropy))))?;
                let options = LinkOptions::parse(&url.0, format!("device-ota-{}", id.trim()))
                    .context("MQTT_BROKER")?;
                let prefix = config.topic_prefix.clone();
                Ok(Self::Link(Link::new(options, prefix, &limits)))
            }
        }
    }
}

/// The service's own user at an external broker, as its URL names it.
pub(crate) fn own_user(config: &Config) -> Option<OwnUser> {
    let Broker::External { url, .. } = &config.broker else {
        return None;
    };
    let (name, password) = LinkOptions::parse(&url.0, "").ok()?.login?;
    Some(OwnUser { name, password })
}

/// The external broker, without its password, for people.
pub(crate) fn broker_name(config: &Config) -> Option<String> {
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
