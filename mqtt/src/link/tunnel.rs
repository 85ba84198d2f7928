//! The way to the broker over TLS. The MQTT client speaks to a socket of our own, and what it says is carried over rustls:
//! the client's own TLS would bring an older verifier of certificates with it (ADR 21).

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};
use tokio_util::task::AbortOnDropHandle;

/// Makes what a connection is secured by, for each connection anew: its files may have changed. Or says why it cannot.
pub type ClientTls = Arc<dyn Fn() -> Result<Arc<ClientConfig>, String> + Send + Sync>;

/// Time for TCP and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the client's last words to go out.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the client and we are called between ourselves.
const SOCKET: &str = "mqtt";

/// Why there is no way over TLS, or there is none any more.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Fault {
    /// Our own files; the text names them.
    #[error("{0}")]
    Files(String),
    /// The broker's name in its URL.
    #[error("no certificate can be for a host of the name in MQTT_BROKER")]
    Name,
    /// Our own socket; the text may name its file.
    #[error("no socket for it can be made in the folder of temporary files: {0}")]
    Own(String),
    /// Below TLS.
    #[error("{0}")]
    Io(String),
    /// Nothing came in time.
    #[error("the broker does not answer")]
    Silent,
    /// TLS itself.
    #[error("{}", told(.0))]
    Tls(TlsError),
}

impl Fault {
    /// The same for whoever may ask how we are: without the names of files.
    pub(super) fn for_everybody(&self) -> String {
        match self {
            Self::Files(_) => {
                "the certificate files for it cannot be used: the log says why".to_owned()
            }
            Self::Own(_) => "no socket for it can be made: the log says why".to_owned(),
            other => other.to_string(),
        }
    }

    fn own(error: &io::Error) -> Self {
        Self::Own(error.to_string())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match of_tls(&error) {
            Some(tls) => Self::Tls(tls),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Io(
                "the broker hung up in the midst of TLS: does it speak TLS at that port?"
                    .to_owned(),
            ),
            None => Self::Io(error.to_string()),
        }
    }
}

fn of_tls(error: &io::Error) -> Option<TlsError> {
    error.get_ref()?.downcast_ref::<TlsError>().cloned()
}

/// In an operator's words, with the setting that mends it.
fn told(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(cause) => match cause {
            // A signature that does not fit is of another authority of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the broker's certificate is of an authority that is not trusted; MQTT_BROKER_CA names one".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the broker's certificate is for other names than the host in MQTT_BROKER".to_owned()
            }
            other => format!("the broker's certificate cannot be trusted: {other}"),
        },
        TlsError::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "the broker asks for a certificate of ours: MQTT_BROKER_CERT and MQTT_BROKER_KEY".to_owned()
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => {
                format!("the broker does not take our certificate (MQTT_BROKER_CERT): {alert:?}")
            }
            other => format!("the broker ended TLS: {other:?}"),
        },
        TlsError::InvalidMessage(_) => "no TLS is spoken at the broker's port".to_owned(),
        other => other.to_string(),
    }
}

/// One connection's way, secured, and waiting for the client.
pub(super) struct Tunnel {
    socket: String,
    carrying: AbortOnDropHandle<()>,
    fault: Arc<OnceLock<Fault>>,
}

impl Tunnel {
    /// Connects to the broker and believes it, or says why not.
    pub(super) async fn open(host: &str, port: u16, tls: &ClientTls) -> Result<Self, Fault> {
        let remote = timeout(CONNECT_TIMEOUT, secured(host, port, tls))
            .await
            .map_err(|_| Fault::Silent)??;
        // Nobody else comes in: the folder is its owner's alone.
        let folder = tempfile::Builder::new()
            .prefix("device-ota-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|error| Fault::own(&error))?;
        let path = folder.path().join(SOCKET);
        let listener = UnixListener::bind(&path).map_err(|error| Fault::own(&error))?;
        let Ok(socket) = path.into_os_string().into_string() else {
            return Err(Fault::Own("its name is not UTF-8".to_owned()));
        };
        let fault = Arc::new(OnceLock::new());
        let carrying = carry(listener, folder, remote, Arc::clone(&fault));
        Ok(Self {
            socket,
            carrying: AbortOnDropHandle::new(tokio::spawn(carrying)),
            fault,
        })
    }

    /// Where the client shall connect: a Unix socket, for one connection.
    pub(super) fn socket(&self) -> &str {
        &self.socket
    }

    /// What ended it, if TLS did.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    /// Ends it once the client is gone and its last words have been carried, or have had their time.
    pub(super) async fn close(self) {
        // What is not carried by then, the broker says again.
        let _ = timeout(FAREWELL, self.carrying).await;
    }
}

async fn secured(host: &str, port: u16, tls: &ClientTls) -> Result<TlsStream<TcpStream>, Fault> {
    let make = Arc::clone(tls);
    let config = tokio::task::spawn_blocking(move || make()).await;
    let config = config
        .map_err(|error| Fault::Files(error.to_string()))?
        .map_err(Fault::Files)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Fault::Name)?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TlsConnector::from(config).connect(name, stream).await?)
}

/// Carries until either side ends. A fault is noted before the client can see the end.
async fn carry(
    listener: UnixListener,
    folder: TempDir,
    remote: TlsStream<TcpStream>,
    fault: Arc<OnceLock<Fault>>,
) {
    let accepted = listener.accept().await;
    drop((listener, folder));
    // Lives until the fault is noted.
    let Ok((mut local, _)) = accepted else { return };
    let (mut from_client, mut to_client) = local.split();
    let (mut from_broker, mut to_broker) = tokio::io::split(remote);
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_broker).await?;
        to_broker.shutdown().await
    };
    let down = tokio::io::copy(&mut from_broker, &mut to_client);
    tokio::pin!(up);
    let ended = tokio::select! {
        ended = &mut up => ended,
        ended = down => match ended {
            // The client is gone, and does not read; what it has said before goes out.
            Err(error) if of_tls(&error).is_none() => {
                timeout(FAREWELL, up).await.unwrap_or(Ok(()))
            }
            ended => ended.map(drop),
        },
    };
    // Of anything below TLS, the client has its own word.
    if let Err(error) = ended
        && let Some(tls) = of_tls(&error)
    {
        // Nobody else writes it.
        let _ = fault.set(Fault::Tls(tls));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_our_own_socket_is_nobody_else_is_told() {
        let fault = Fault::own(&io::Error::other("/var/tmp/device-ota is full"));
        assert!(fault.to_string().contains("/var/tmp"));
        assert!(!fault.for_everybody().contains("/var/tmp"));
    }
}
