//! TLS with strangers: whoever stalls in the handshake, or sends what is none, is let go and keeps nobody out; and what a
//! client that does not read leaves behind is bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::ports::{Delivery, Downlink as _};
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_protocol::topics::Down;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use super::heartbeat;
use crate::service::{PATIENCE, WithGateway, device_id};
use crate::wire::{BOTH, Connect, length, puback, suback, subscribe};

/// A gateway with a listener for TLS, and a client's way to believe it.
struct Secured {
    gateway: WithGateway,
    connector: TlsConnector,
    _configs: watch::Sender<Arc<ServerConfig>>,
}

impl Secured {
    async fn start(limits: Limits) -> Self {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let own = own.self_signed(&key).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.clone()], PrivateKeyDer::Pkcs8(key))
            .unwrap();
        let (configs, config) = watch::channel(Arc::new(server));
        Self {
            gateway: WithGateway::secured(limits, Some(config)).await,
            connector: connector(provider, own),
            _configs: configs,
        }
    }

    /// A socket that has sent these bytes, and knows nothing of TLS.
    async fn stranger(&self, hello: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.gateway.tls.unwrap()).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream
    }

    /// A device that is connected and subscribed.
    async fn device(&self, version: Version, id: &str, secret: &str) -> TlsStream<TcpStream> {
        let stream = self.stranger(b"").await;
        let name = ServerName::try_from("localhost").unwrap();
        let mut device = self.connector.connect(name, stream).await.unwrap();
        let connect = Connect::new(version, id, secret).bytes();
        device.write_all(&connect).await.unwrap();
        let connack = packet(&mut device).await;
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:?}");
        let filter = format!("ota/v1/{id}/down/#");
        let asked = subscribe(version, 1, &[(&filter, 1)]);
        device.write_all(&asked).await.unwrap();
        assert_eq!(packet(&mut device).await, suback(version, 1, &[1]));
        device
    }
}

fn connector(
    provider: Arc<rustls::crypto::CryptoProvider>,
    authority: CertificateDer<'static>,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(client))
}

/// The next packet, and no byte more.
async fn packet(device: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let reading = async {
        let mut bytes = Vec::new();
        while length(&bytes) != Some(bytes.len()) {
            bytes.push(device.read_u8().await.unwrap());
        }
        bytes
    };
    timeout(PATIENCE, reading).await.expect("nothing came")
}

async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // Closed, or reset for what was never read.
    let _ = ended.expect("it is let go");
}

#[tokio::test]
async fn who_stalls_in_the_handshake_is_let_go_and_keeps_nobody_out() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(700),
        max_unauthenticated: 64,
        ..Limits::default()
    };
    let secured = Secured::start(limits).await;
    let secret = secured.gateway.service.register("d1").await;
    // The head of a ClientHello that says how long it is, and part of it.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(secured.stranger(b"").await);
        stalled.push(secured.stranger(hello).await);
    }
    // No TLS at all is known at once, and a client without it is told by an alert.
    let mut plain = secured
        .stranger(&Connect::new(Version::V5, "d1", &secret).bytes())
        .await;
    ends(&mut plain).await;
    let service = &secured.gateway.service;
    service
        .until_counted("mqtt_refused", "tls_handshake", 1)
        .await;
    for version in BOTH {
        let mut device = secured.device(version, "d1", &secret).await;
        let beat = heartbeat(version, 77, "d1", "1.0.0");
        device.write_all(&beat).await.unwrap();
        assert_eq!(packet(&mut device).await, puback(77));
    }
    for stranger in &mut stalled {
        ends(stranger).await;
    }
    service
        .until_counted("mqtt_refused", "connect_timeout", 40)
        .await;
    secured.gateway.service.stop().await;
}

#[tokio::test]
async fn who_does_not_read_over_tls_is_let_go_and_who_reads_late_misses_nothing() {
    let limits = Limits {
        write_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let secured = Secured::start(limits).await;
    let secret = secured.gateway.service.register("d1").await;
    let to = Down::Chunk {
        request: 1,
        offset: 0,
    };
    let piece = Bytes::from(vec![7; 64 * 1024]);
    let send = async || {
        let id = device_id("d1");
        let sessions = &secured.gateway.sessions;
        sessions.send(&id, &to, piece.clone()).await
    };
    // As much as the mailbox takes, and as the socket and TLS hold: the device reads all of it in the end.
    let mut device = secured.device(Version::V3, "d1", &secret).await;
    let mut queued = 0;
    while queued < 3 && send().await == Delivery::Queued {
        queued += 1;
    }
    for _ in 0..queued {
        let got = packet(&mut device).await;
        assert!(got.ends_with(&piece[..1024]), "{}", got.len());
    }
    // Now it reads no more, and there is always more.
    let stalled = || {
        secured
            .gateway
            .service
            .counted("mqtt_disconnected", "stalled")
    };
    let filling = async {
        while stalled() == 0 {
            send().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, filling).await.expect("it is let go");
    secured.gateway.service.stop().await;
}
