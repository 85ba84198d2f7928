//! A real S3 server for tests, of this and other crates: it listens on a port of its own, keeps its objects in a folder that
//! goes with it, can be stopped and started again, can hold requests, and can be far away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::S3Settings;

/// The bucket that [`S3Server::settings`] name.
pub const BUCKET: &str = "firmware";
/// Who may come in.
pub const ACCESS_KEY: &str = "ota";
/// What proves it.
pub const SECRET_KEY: &str = "ota-secret";

/// A server; ended with its owner.
pub struct S3Server {
    folder: TempDir,
    addr: SocketAddr,
    service: S3Service,
    running: Option<JoinHandle<()>>,
    held: watch::Sender<bool>,
    waiting: watch::Sender<u64>,
    distance: watch::Sender<Duration>,
}

impl S3Server {
    /// Starts one without a bucket, on a port that the system chooses.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start() -> Self {
        let folder = TempDir::new().expect("a folder for the server");
        let files = FileSystem::new(folder.path()).expect("the server's folder");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let mut server = Self {
            folder,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            service: builder.build(),
            running: None,
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            distance: watch::Sender::new(Duration::ZERO),
        };
        server.start_again().await;
        server
    }

    /// Listens again after [`S3Server::stop`], on the same port.
    ///
    /// # Panics
    /// When the port is taken.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("a port");
        self.addr = listener.local_addr().expect("its address");
        let (service, held, waiting, distance) = (
            self.service.clone(),
            self.held.subscribe(),
            self.waiting.clone(),
            self.distance.subscribe(),
        );
        self.running = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (service, held, waiting) = (service.clone(), held.clone(), waiting.clone());
                let distance = distance.clone();
                let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let (service, mut held, waiting) =
                        (service.clone(), held.clone(), waiting.clone());
                    let distance = *distance.borrow();
                    async move {
                        tokio::time::sleep(distance).await;
                        if is_later_part(&request) {
                            waiting.send_modify(|count| *count += 1);
                            // The owner is gone when it does not become free any more.
                            let _ = held.wait_for(|held| !held).await;
                        }
                        hyper::service::Service::call(&service, request).await
                    }
                });
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
            }
        }));
    }

    /// Ends it: connections break, and the port refuses new ones. Its objects stay.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Settings that open [`BUCKET`].
    pub fn settings(&self) -> S3Settings {
        S3Settings {
            endpoint: self.endpoint(),
            public_endpoint: Some(self.endpoint()),
            bucket: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
        }
    }

    /// From now on it takes so long before it answers a request.
    pub fn is_far(&self, distance: Duration) {
        self.distance.send_replace(distance);
    }

    /// Holds every part of an object after its first one, or lets them all go on.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Returns when so many parts after a first one have come, since it was started.
    ///
    /// # Panics
    /// Never: the server has the other end itself.
    pub async fn parts(&self, count: u64) {
        let mut waiting = self.waiting.subscribe();
        waiting
            .wait_for(|seen| *seen >= count)
            .await
            .expect("the server counts");
    }

    /// Where an object of [`BUCKET`] lies.
    pub fn object(&self, name: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join("objects").join(name)
    }

    /// Files of uploads that were begun and neither completed nor taken back.
    ///
    /// # Panics
    /// When the server's folder cannot be read.
    pub fn unfinished(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("the server's folder");
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(".upload"))
            .collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

/// Whether it is a part of an object, and not the first one.
fn is_later_part<T>(request: &hyper::Request<T>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("partNumber="))
        .any(|number| number != "1")
}
