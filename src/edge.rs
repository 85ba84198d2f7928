//! The way to devices: our own gateway, or the link to an external broker.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::Engine;
use device_ota_engine::ports::{Downlink, Entropy};
use device_ota_http::Component;
use device_ota_mqtt::{Gateway, Group, Limits, Link, LinkOptions, Sessions, Sharing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Broker, Config, MqttTls};
use crate::data_dir::{DataDir, write_private};
use crate::open_files::Room;
use crate::password_file::{self, OwnUser};
use crate::tasks::Tasks;
use crate::tls::{self, Keeper, Standing};

/// The groups in which reports were ever shared, one a line.
pub(crate) const GROUPS: &str = "mqtt.groups";

/// The way to devices, before and after the engine exists.
pub(crate) enum Edge {
    Gateway(Box<Devices>),
    Link(Link),
}

/// Our own gateway, its listeners bound.
pub(crate) struct Devices {
    gateway: Gateway,
    sessions: Sessions,
    listening: Listening,
    /// Of the listener with TLS.
    keeper: Option<Keeper>,
}

/// Where devices connect, without TLS and with it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listening {
    pub plain: Option<SocketAddr>,
    pub tls: Option<SocketAddr>,
}

impl Edge {
    pub(crate) fn downlink(&self) -> Arc<dyn Downlink> {
        match self {
            Self::Gateway(devices) => Arc::new(devices.sessions.clone()),
            Self::Link(link) => Arc::new(link.clone()),
        }
    }

    pub(crate) fn listening(&self) -> Listening {
        match self {
            Self::Gateway(devices) => devices.listening,
            Self::Link(_) => Listening::default(),
        }
    }

    /// How the certificate of devices' listener is.
    pub(crate) fn standing(&self) -> Option<watch::Receiver<Standing>> {
        match self {
            Self::Gateway(devices) => devices.keeper.as_ref().map(Keeper::standing),
            Self::Link(_) => None,
        }
    }

    /// How it is, each time it is asked.
    pub(crate) fn health(&self) -> Box<dyn Fn() -> Vec<Component> + Send + Sync> {
        match self {
            Self::Gateway(devices) => {
                let (sessions, listening) = (devices.sessions.clone(), devices.listening);
                Box::new(move || {
                    let gateway = Component {
                        name: "mqtt_gateway",
                        healthy: true,
                        essential: true,
                        detail: Some(format!("{} devices connected", sessions.connected())),
                        address: listening.plain,
                    };
                    let tls = listening.tls.map(|address| Component {
                        name: "mqtt_gateway_tls",
                        detail: Some("mqtts".to_owned()),
                        address: Some(address),
                        ..gateway.clone()
                    });
                    [gateway].into_iter().chain(tls).collect()
                })
            }
            Self::Link(link) => {
                let link = link.clone();
                Box::new(move || vec![of_link(&link)])
            }
        }
    }

    /// Whether devices' sessions end with this process: a broker keeps its sessions without us.
    pub(crate) const fn holds_sessions(&self) -> bool {
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
            Self::Gateway(devices) => {
                if let Some(keeper) = devices.keeper {
                    keeper.spawn("mqtt_certificate", tasks, &engine, &stop);
                }
                let gateway = devices.gateway;
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
            Broker::Embedded { addr, tls } => {
                let sessions = Sessions::new(config.topic_prefix.clone(), limits);
                let mut devices = Devices {
                    gateway: Gateway::new(sessions.clone(), limits),
                    sessions,
                    listening: Listening::default(),
                    keeper: None,
                };
                if let Some(addr) = addr {
                    let bound = devices.gateway.listen(*addr, None);
                    let bound =
                        bound.with_context(|| format!("MQTT_ADDR: cannot listen on {addr}"))?;
                    devices.listening.plain = Some(bound);
                }
                if let Some(MqttTls { addr, files }) = tls {
                    let keeper = Keeper::open(files)?;
                    let bound = devices.gateway.listen(*addr, Some(keeper.configs()));
                    let bound =
                        bound.with_context(|| format!("MQTT_TLS_ADDR: cannot listen on {addr}"))?;
                    devices.listening.tls = Some(bound);
                    devices.keeper = Some(keeper);
                }
                Ok(Self::Gateway(Box::new(devices)))
            }
            Broker::External {
                url,
                tls,
                group,
                password_file,
            } => {
                if let Some(path) = password_file {
                    password_file::check(path, &config.data_dir)?;
                }
                // The broker keeps our session under this name while we are away, so it must outlive a restart.
                let id = data.name(entropy)?;
                let options = LinkOptions::parse(&url.0, format!("device-ota-{id}"));
                let mut options = options.context("MQTT_BROKER")?;
                options.sharing = sharing(data, group.clone())?;
                let tls = match tls {
                    Some(tls) => {
                        tls::broker::config(tls)?;
                        Some(tls::broker::for_each_connection(tls.clone()))
                    }
                    None => None,
                };
                let prefix = config.topic_prefix.clone();
                Ok(Self::Link(Link::new(options, tls, prefix, &limits)))
            }
        }
    }
}

fn of_link(link: &Link) -> Component {
    let healthy = link.connected();
    let detail = (!healthy).then(|| match link.trouble() {
        Some(trouble) => format!("there is no link to the broker; it is tried again: {trouble}"),
        None => "there is no link to the broker yet".to_owned(),
    });
    Component {
        name: "mqtt_broker",
        healthy,
        essential: true,
        detail,
        address: None,
    }
}

/// With whom reports are shared. The broker's session keeps what it was told, so the groups of earlier settings are written down.
fn sharing(data: &DataDir, group: Option<Group>) -> anyhow::Result<Sharing> {
    let known = data.private(GROUPS, || Ok(String::new()))?.0;
    let left = groups(&known, &data.join(GROUPS))?;
    if let Some(group) = &group
        && !left.contains(group)
    {
        let text = format!("{known}{group}\n");
        write_private(&data.join(GROUPS), text.as_bytes())?;
    }
    Ok(Sharing { group, left })
}

/// The groups that a file names, one a line.
pub(crate) fn groups(text: &str, path: &Path) -> anyhow::Result<Vec<Group>> {
    let groups = text.lines().map(str::parse).collect::<Result<_, _>>();
    groups.with_context(|| format!("{} has no groups' names", path.display()))
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
            let (scheme, rest) = url.0.split_once("://").unwrap_or(("mqtt", &url.0));
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            Some(format!("{scheme}://{host}"))
        }
    }
}
