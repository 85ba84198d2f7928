//! One connection to the broker, with TLS or without: a client of its own, and the way that its bytes go.

use std::time::Duration;

use device_ota_protocol::messages::MAX_PAYLOAD;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Transport,
};

use super::tunnel::{Fault, Tunnel};
use super::{ClientTls, LinkOptions};

/// Silence after which the broker is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Time for a connection to come about, in seconds.
const CONNECT_TIMEOUT_S: u64 = 5;
/// Messages that wait for the socket; beyond, senders wait.
const REQUESTS: usize = 1_024;
/// QoS 1 messages on the way to the broker.
const MAX_INFLIGHT: u16 = 1_000;
/// Largest packet either way, bytes: a report, or a chunk of 64 KiB with its topic.
pub(super) const MAX_PACKET: usize = MAX_PAYLOAD + 64 * 1024;

/// Why a connection did not come about, or is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// By MQTT or what is below it.
    #[error(transparent)]
    Mqtt(#[from] ConnectionError),
    /// By TLS.
    #[error(transparent)]
    Tls(#[from] Fault),
    /// The broker took the connection, and not what it was for.
    #[error("the broker does not let us subscribe to reports: see its access rules")]
    NotSubscribed,
    /// The broker has no shared subscriptions, or its rules keep us from our own topic.
    #[error(
        "the broker took our shared subscriptions and hands nothing over: it has none (leave MQTT_SHARED_GROUP out), or its \
         rules do not let us read and write the topics below $service"
    )]
    NotShared,
}

impl Lost {
    /// The same for whoever may ask how we are.
    pub(super) fn for_everybody(&self) -> String {
        match self {
            Self::Tls(fault) => fault.for_everybody(),
            other => other.to_string(),
        }
    }
}

/// What tells our connections apart, and how they are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    /// Ends the client id.
    pub(super) name: &'static str,
    /// The broker keeps the session while we are away.
    pub(super) keeps_session: bool,
    /// Largest packet that is taken, bytes.
    pub(super) max_incoming: usize,
}

/// A new client, with nothing of an earlier one.
pub(super) struct Connection {
    pub(super) client: AsyncClient,
    events: EventLoop,
    tunnel: Option<Tunnel>,
}

impl Connection {
    /// Begins one; its first event says that the broker has taken it.
    pub(super) async fn open(
        options: &LinkOptions,
        tls: Option<&ClientTls>,
        role: Role,
    ) -> Result<Self, Lost> {
        let LinkOptions {
            host,
            port,
            login,
            client_id,
            ..
        } = options;
        let tunnel = match tls {
            Some(tls) => Some(Tunnel::open(host, *port, tls).await?),
            None => None,
        };
        let place = tunnel.as_ref().map_or(host.as_str(), Tunnel::socket);
        let mut options = MqttOptions::new(format!("{client_id}-{}", role.name), place, *port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(!role.keeps_session)
            .set_manual_acks(true)
            .set_max_packet_size(role.max_incoming, MAX_PACKET)
            .set_inflight(MAX_INFLIGHT);
        if tunnel.is_some() {
            options.set_transport(Transport::unix());
        }
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        events.set_network_options(network);
        Ok(Self {
            client,
            events,
            tunnel,
        })
    }

    /// What happens next; after an error there is nothing more.
    pub(super) async fn next(&mut self) -> Result<Event, Lost> {
        self.events.poll().await.map_err(|error| {
            let fault = self.tunnel.as_ref().and_then(Tunnel::fault);
            fault.map_or(Lost::Mqtt(error), Lost::Tls)
        })
    }

    /// Ends it; what the client has said goes out.
    pub(super) async fn close(self) {
        drop((self.client, self.events));
        if let Some(tunnel) = self.tunnel {
            tunnel.close().await;
        }
    }
}
