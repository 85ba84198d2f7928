//! A balancer before several replicas: each connection goes to the next of them that takes it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A listener of its own; ended with its owner.
pub struct Balancer {
    addr: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Balancer {
    /// Leads nowhere yet.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let targets: Arc<Mutex<Vec<String>>> = Arc::default();
        let known = targets.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let targets = {
                    let mut targets = known.lock().unwrap();
                    if !targets.is_empty() {
                        targets.rotate_left(1);
                    }
                    targets.clone()
                };
                tokio::spawn(lead(client, targets));
            }
        });
        Self {
            addr,
            targets,
            serving,
        }
    }

    /// Leads to these from now on.
    pub fn leads_to(&self, targets: &[String]) {
        *self.targets.lock().unwrap() = targets.to_vec();
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.addr.to_string()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn lead(mut client: TcpStream, targets: Vec<String>) {
    for target in targets {
        if let Ok(mut server) = TcpStream::connect(&target).await {
            // Whoever of both goes first ends it for both.
            let _ = copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}
