//! What a device's bytes come and go by: a socket as it is, or one that TLS keeps.

use std::future::ready;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use device_ota_protocol::ids::DeviceId;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How the next connections of a listener are secured; those that there are stay as they are.
pub type TlsConfigs = watch::Receiver<Arc<ServerConfig>>;

/// Bytes that TLS may hold of what the socket does not take, beside those that wait before it: one record.
const MAX_UNSENT_RECORDS: usize = 16 * 1024;

/// A connection's way in and out. Each kind has code of its own, so that a plain one pays nothing for the other.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// What has come already, as far as it can be known without waiting.
    fn read_at_once(&mut self, bytes: &mut [u8]) -> usize;

    /// Sends what is taken without waiting.
    fn write_at_once(&mut self, bytes: &[u8]) -> usize;

    /// Whose certificate the peer has shown.
    fn certified(&self) -> Certified;
}

/// What a peer's certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Certified {
    /// It has shown none.
    Nobody,
    /// The one common name of one that an authority of ours has signed and not revoked.
    Device(DeviceId),
    /// Such a one without a common name that is a device's id.
    Stranger,
}

impl Wire for TcpStream {
    fn read_at_once(&mut self, bytes: &mut [u8]) -> usize {
        // Nothing yet, an end or an error: who waits for more finds out.
        (&*SockRef::from(&*self)).read(bytes).unwrap_or(0)
    }

    fn write_at_once(&mut self, bytes: &[u8]) -> usize {
        (&*SockRef::from(&*self)).write(bytes).unwrap_or(0)
    }

    fn certified(&self) -> Certified {
        Certified::Nobody
    }
}

/// The stream is boxed: what TLS knows of a connection is a kilobyte.
impl Wire for Box<TlsStream<TcpStream>> {
    fn read_at_once(&mut self, _: &mut [u8]) -> usize {
        0
    }

    fn write_at_once(&mut self, _: &[u8]) -> usize {
        0
    }

    fn certified(&self) -> Certified {
        let (_, session) = self.get_ref();
        let Some(shown) = session.peer_certificates().and_then(<[_]>::first) else {
            return Certified::Nobody;
        };
        common_name(shown).map_or(Certified::Stranger, Certified::Device)
    }
}

fn common_name(certificate: &[u8]) -> Option<DeviceId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let (name, None) = (names.next()?, names.next()) else {
        return None;
    };
    name.as_str().ok()?.parse().ok()
}

/// A socket as it is.
pub(super) fn plain(stream: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send {
    ready(Ok(stream))
}

/// A socket once its handshake is done.
pub(super) async fn secured(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<Box<TlsStream<TcpStream>>> {
    let bounded = TlsAcceptor::from(config).accept_with(stream, |session| {
        session.set_buffer_limit(Some(MAX_UNSENT_RECORDS));
    });
    Ok(Box::new(bounded.await?))
}
