//! The end of a connection that the gateway ends: the peer gets to read why.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::Hub;
use super::wire::Wire;

/// Time that a refused peer gets to read why, before the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that are still read from it, so that closing does not destroy what it was told.
const MAX_DRAINED: usize = 64 * 1024;
/// Bytes of it that are read at a time.
const WASTE_BYTES: usize = 512;

/// Says a last word, and gives the peer a moment to read it.
pub(super) async fn farewell(mut stream: impl Wire, word: &[u8], hub: &Hub) {
    let last = async {
        stream.write_all(word).await?;
        stream.shutdown().await?;
        let (mut waste, mut drained) = ([0; WASTE_BYTES], 0);
        while drained < MAX_DRAINED {
            match stream.read(&mut waste).await? {
                0 => break,
                read => drained += read,
            }
        }
        std::io::Result::Ok(())
    };
    let good_bye = async {
        // It may be gone, or not listen: either way this is the end.
        let _ = timeout(FAREWELL, last).await;
    };
    if !hub.porch.linger(good_bye).await {
        hub.count("mqtt_farewell", "cut_short");
    }
}
