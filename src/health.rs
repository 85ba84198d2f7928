//! How the parts beside the engine are, for `/health/detailed`.

use std::net::SocketAddr;
use std::sync::Arc;

use device_ota_engine::ports::Clock as _;
use device_ota_http::{Component, Http};
use device_ota_mqtt::Bus;
use device_ota_platform::{Nats, NatsStatus};
use tokio::sync::watch;

use crate::edge::Edge;
use crate::services::Services;
use crate::system::SystemClock;
use crate::tls::Standing;

/// The parts that are asked.
pub(crate) fn components(
    http: &Http,
    internal: Option<SocketAddr>,
    edge: &Edge,
    bus: Option<Arc<Bus>>,
    certificate: Option<watch::Receiver<Standing>>,
    nats: Option<Arc<Nats>>,
    services: Services,
) -> Arc<dyn Fn() -> Vec<Component> + Send + Sync> {
    let listener = |name, address| Component {
        name,
        healthy: true,
        essential: true,
        detail: None,
        address: Some(address),
    };
    let api = Component {
        detail: certificate.as_ref().map(|_| "https".to_owned()),
        ..listener("http", http.local_addr())
    };
    let internal = internal.map(|address| listener("internal", address));
    let certificates: Vec<_> = certificate.into_iter().chain(edge.standing()).collect();
    let edge = edge.health();
    Arc::new(move || {
        let bus = bus.as_ref().map(|bus| Component {
            name: "bus",
            healthy: bus.is_up(),
            essential: false,
            detail: None,
            address: Some(bus.local_addr()),
        });
        let now = SystemClock.now();
        let certificates = certificates
            .iter()
            .map(|standing| standing.borrow().component(now));
        let nats = nats.as_ref().map(|nats| of_nats(&nats.status()));
        let parts = [api.clone()].into_iter().chain(internal.clone());
        let parts = parts.chain(edge()).chain(bus).chain(nats);
        parts.chain(certificates).chain(services.health()).collect()
    })
}

fn of_nats(status: &NatsStatus) -> Component {
    let NatsStatus {
        is_connected,
        since,
        trouble,
    } = status;
    let detail = match (is_connected, trouble) {
        (true, None) => format!("connected since {since}"),
        (true, Some(trouble)) => format!("connected, and fails: {trouble}"),
        (false, None) => format!("not connected since {since}"),
        (false, Some(trouble)) => format!("not connected since {since}: {trouble}"),
    };
    Component {
        name: "nats",
        healthy: *is_connected && trouble.is_none(),
        essential: false,
        detail: Some(detail),
        address: None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn nats_that_is_connected_and_fails_is_not_called_well() {
        let told = |is_connected, trouble: Option<&str>| {
            let component = of_nats(&NatsStatus {
                is_connected,
                since: Timestamp::UNIX_EPOCH,
                trouble: trouble.map(str::to_owned),
            });
            (component.healthy, component.detail.unwrap_or_default())
        };
        for (is_connected, trouble, healthy, detail) in [
            (true, None, true, "connected since 1970-01-01T00:00:00Z"),
            (true, Some("x"), false, "connected, and fails: x"),
            (
                false,
                Some("x"),
                false,
                "not connected since 1970-01-01T00:00:00Z: x",
            ),
        ] {
            assert_eq!(told(is_connected, trouble), (healthy, detail.to_owned()));
        }
    }
}
