//! The services around: the Auth Service, the Device Service, Consul. Each is there when the settings name it; none of them is
//! waited for.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::{Clock, DeviceService};
use device_ota_http::Component;
use device_ota_platform::{
    Consul, ConsulError, Fault, HttpAuthService, HttpDeviceService, Instance, ServiceStatus,
};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConsulSettings};
use crate::tasks::Tasks;

/// Those that the settings name.
#[derive(Clone)]
pub(crate) struct Services {
    auth: Option<Arc<HttpAuthService>>,
    devices: Option<Arc<HttpDeviceService>>,
    consul: Option<Arc<Consul>>,
}

impl Services {
    /// Makes the clients; `http` is where the API listens. Nobody is spoken to yet.
    pub(crate) fn open(
        config: &Config,
        http: SocketAddr,
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let auth = config.auth_service_url.as_ref();
        let auth = auth.map(|url| HttpAuthService::new(&url.0, clock.clone()));
        let devices = config.device_service_url.as_ref();
        let devices = devices.map(|url| HttpDeviceService::new(&url.0, clock.clone()));
        let consul = config.consul.as_ref();
        let consul = consul.map(|settings| consul_of(config, settings, http, clock));
        Ok(Self {
            auth: auth.transpose().context("AUTH_SERVICE_URL")?.map(Arc::new),
            devices: devices
                .transpose()
                .context("DEVICE_SERVICE_URL")?
                .map(Arc::new),
            consul: consul.transpose()?.map(Arc::new),
        })
    }

    /// The one that knows other credentials.
    pub(crate) fn auth(&self) -> Option<Arc<HttpAuthService>> {
        self.auth.clone()
    }

    /// The one that knows other devices.
    pub(crate) fn devices(&self) -> Option<Arc<dyn DeviceService>> {
        let devices = self.devices.clone();
        devices.map(|devices| devices as Arc<dyn DeviceService>)
    }

    /// How they are. The service does without each of them.
    pub(crate) fn health(&self) -> impl Iterator<Item = Component> {
        let auth = self.auth.as_ref();
        let auth = auth.map(|auth| asked("auth_service", auth.status()));
        let devices = self.devices.as_ref();
        let devices = devices.map(|devices| asked("device_service", devices.status()));
        let consul = self.consul.as_ref().map(|consul| {
            let words = ["being registered", "registered"];
            let how = |fault: &Fault| match fault {
                Fault::Odd(_) => "not registered, answers oddly",
                Fault::Away(_) | Fault::Busy(_) | Fault::Failed(_) => "not registered",
            };
            let component = component("consul", consul.status(), words, how);
            let detail = component
                .detail
                .map(|detail| format!("{}: {detail}", consul.id()));
            Component {
                detail,
                ..component
            }
        });
        auth.into_iter().chain(devices).chain(consul)
    }

    /// Looks after them until `stop`.
    pub(crate) fn spawn(self, tasks: &mut Tasks, stop: &CancellationToken) {
        let Self {
            auth,
            devices,
            consul,
        } = self;
        if let Some(auth) = auth {
            let stop = stop.clone();
            tasks.spawn("auth service", async move { auth.watch(&stop).await });
        }
        if let Some(devices) = devices {
            let stop = stop.clone();
            tasks.spawn("device service", async move { devices.watch(&stop).await });
        }
        if let Some(consul) = consul {
            let stop = stop.clone();
            tasks.spawn("consul", async move { consul.serve(&stop).await });
        }
    }
}

fn consul_of(
    config: &Config,
    settings: &ConsulSettings,
    http: SocketAddr,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Consul> {
    // Where it listens, unless that is no address that somebody could be told; then the public one must be there.
    let own = (!http.ip().is_unspecified()).then(|| format!("{}://{http}", config.scheme()));
    let url = settings.advertise_url.clone().or(own);
    let url = url.or_else(|| config.public_url.clone());
    let url = url.context("CONSUL_ADVERTISE_URL: must say where others find the service")?;
    let instance = Instance::at(&url, env!("CARGO_PKG_VERSION"));
    let instance =
        instance.with_context(|| format!("CONSUL_ADVERTISE_URL: {url} names no host and port"))?;
    let token = settings.token.as_ref().map(|token| token.0.as_str());
    Consul::new(&settings.url.0, token, instance, clock.clone()).map_err(|error| {
        let setting = match error {
            ConsulError::Token(_) => "CONSUL_TOKEN",
            ConsulError::Client(_) => "CONSUL_URL",
        };
        anyhow::Error::new(error).context(setting)
    })
}

fn asked(name: &'static str, status: ServiceStatus) -> Component {
    let how = |fault: &Fault| match fault {
        Fault::Away(_) => "away",
        Fault::Busy(_) => "busy",
        Fault::Failed(_) => "fails",
        Fault::Odd(_) => "answers oddly",
    };
    component(name, status, ["not yet asked", "answers"], how)
}

/// What is not known yet, what is well, and `how` it is that is not, in these words.
fn component(
    name: &'static str,
    status: ServiceStatus,
    [unknown, well]: [&'static str; 2],
    how: impl FnOnce(&Fault) -> &'static str,
) -> Component {
    let ServiceStatus {
        is_known,
        since,
        trouble,
    } = status;
    let healthy = trouble.is_none();
    let detail = match trouble {
        Some(fault) => format!("{} since {since}: {fault}", how(&fault)),
        None if is_known => format!("{well} since {since}"),
        None => unknown.to_owned(),
    };
    Component {
        name,
        healthy,
        essential: false,
        detail: Some(detail),
        address: None,
    }
}
