//! The door of the bus: the port that clients know. rumqttd listens on one of its own behind it, another one in each of its lives,
//! because it does not always give one up when it dies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::broker::{MAX_CONNECTIONS, Room};

/// Clients at a time: fewer than [`MAX_CONNECTIONS`], at which rumqttd stops listening.
const MAX_CLIENTS: usize = MAX_CONNECTIONS - 24;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lets clients in until `stop`. While there is nobody behind the door, they are let go at once.
pub(super) async fn keep(
    listener: TcpListener,
    room: watch::Receiver<Option<Room>>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut is_full = false;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let outer = match accepted {
            Ok((outer, _)) => outer,
            Err(error) => {
                warn!(%error, "the bus cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if !is_full {
                warn!(
                    clients = MAX_CLIENTS,
                    "the bus lets nobody in before one of its clients leaves"
                );
            }
            is_full = true;
            continue;
        };
        is_full = false;
        let Some(room) = room.borrow().clone() else {
            continue;
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = stop.cancelled() => {}
                () = room.dead.cancelled() => {}
                () = pass(outer, room.addr) => {}
            }
        });
    }
}

/// Carries bytes both ways until rumqttd has ended the connection. When the client has, what it said last is still heard.
async fn pass(mut outer: TcpStream, addr: SocketAddr) {
    let Ok(mut inner) = TcpStream::connect(addr).await else {
        return;
    };
    for stream in [&outer, &inner] {
        let _ = stream.set_nodelay(true);
    }
    let (mut from_client, mut to_client) = outer.split();
    let (mut from_broker, mut to_broker) = inner.split();
    let up = async {
        let _ = copy(&mut from_client, &mut to_broker).await;
        let _ = to_broker.shutdown().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = up => {}
        _ = copy(&mut from_broker, &mut to_client) => {}
    }
}
