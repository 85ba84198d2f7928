//! A knock at the bus: a whole CONNECT, answered by a whole CONNACK, which takes its listener and its router alike.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// CONNECT, MQTT 3.1.1, clean session, keep-alive 10 s, client id `probe`.
const CONNECT: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x0a\x00\x05probe";
/// CONNACK: accepted.
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
/// DISCONNECT.
const DISCONNECT: &[u8] = &[0xe0, 0];

/// Fails when the broker does not answer as it should.
pub(super) async fn knock(addr: SocketAddr) -> io::Result<()> {
    let knock = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(CONNECT).await?;
        let mut answer = [0; CONNACK.len()];
        stream.read_exact(&mut answer).await?;
        if answer != CONNACK {
            return Err(io::Error::other("another answer than CONNACK"));
        }
        stream.write_all(DISCONNECT).await
    };
    timeout(PATIENCE, knock)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
