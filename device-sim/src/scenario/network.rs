//! The network between a fleet and the service's MQTT end, which a story can cut: every connection is reset, and none
//! is made until the time is over.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A stretch of network; gone when dropped.
#[derive(Debug)]
pub(super) struct Network {
    address: SocketAddr,
    up: watch::Sender<bool>,
    _relay: JoinSet<()>,
}

impl Network {
    /// A way to `server`, with an address of its own.
    pub(super) async fn before(server: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (up, is_up) = watch::channel(true);
        let mut relay = JoinSet::new();
        relay.spawn(accept(listener, server, is_up));
        Ok(Self {
            address,
            up,
            _relay: relay,
        })
    }

    /// Where devices connect.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Nothing gets through for so long.
    pub(super) async fn cut(&self, lasts: Duration) {
        self.up.send_replace(false);
        sleep(lasts).await;
        self.up.send_replace(true);
    }
}

async fn accept(listener: TcpListener, server: String, up: watch::Receiver<bool>) {
    let mut connections = JoinSet::new(); // end with the network
    loop {
        let Ok((device, _)) = listener.accept().await else {
            continue; // it hung up before it was taken
        };
        while connections.try_join_next().is_some() {}
        if *up.borrow() {
            connections.spawn(carry(device, server.clone(), up.clone()));
        } else {
            reset(&device);
        }
    }
}

/// Carries bytes both ways until one side ends or the network is cut.
async fn carry(mut device: TcpStream, server: String, mut up: watch::Receiver<bool>) {
    let Ok(mut service) = TcpStream::connect(&server).await else {
        return reset(&device);
    };
    let ended = tokio::select! {
        ended = copy_bidirectional(&mut device, &mut service) => ended.is_ok(),
        _ = up.wait_for(|up| !up) => false,
    };
    if !ended {
        reset(&device);
        reset(&service);
    }
}

/// Closes without a goodbye, as a lost network looks in the end.
fn reset(socket: &TcpStream) {
    // Without it the socket closes in order, which serves nearly as well.
    let _ = socket.set_zero_linger();
}
