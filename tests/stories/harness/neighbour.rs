//! Another service of the house: an HTTP server that says what the story wants, keeps what it was asked, and may be slow, hang,
//! talk nonsense or be gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::wait::eventually;

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// By name in small letters.
    pub headers: BTreeMap<String, String>,
    /// JSON, or null.
    pub body: Value,
}

/// What it says.
#[derive(Debug, Clone)]
pub enum Says {
    /// A status, and JSON.
    Json(u16, Value),
    /// A status, and whatever text.
    Text(u16, String),
    /// The same as `Json`, after a while.
    Late(Duration, u16, Value),
    /// Nothing, and it does not hang up either.
    Nothing,
}

type Mind = Arc<Mutex<Box<dyn FnMut(&Asked) -> Says + Send>>>;

/// The server, ended with the test.
pub struct Neighbour {
    address: String,
    mind: Mind,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl Neighbour {
    /// Starts one on a free port. It is asked for its health, too: `GET /health`.
    pub async fn start(mind: impl FnMut(&Asked) -> Says + Send + 'static) -> Self {
        let mut neighbour = Self {
            address: "127.0.0.1:0".to_owned(),
            mind: Arc::new(Mutex::new(Box::new(mind))),
            asked: Arc::default(),
            serving: None,
        };
        neighbour.start_again().await;
        neighbour
    }

    /// Answers otherwise from now on.
    pub fn thinks(&self, mind: impl FnMut(&Asked) -> Says + Send + 'static) {
        *self.mind.lock().unwrap() = Box::new(mind);
    }

    /// Is there again, on the same port.
    pub async fn start_again(&mut self) {
        assert!(self.serving.is_none(), "it is there already");
        let address = self.address.clone();
        let listener = eventually("the port is free", async || {
            let bound = TcpListener::bind(&address).await;
            bound.map_err(|error| error.to_string())
        })
        .await;
        self.address = listener.local_addr().unwrap().to_string();
        let (mind, asked) = (Arc::clone(&self.mind), Arc::clone(&self.asked));
        self.serving = Some(tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        open.spawn(serve(stream, Arc::clone(&mind), Arc::clone(&asked)));
                    }
                    Some(served) = open.join_next() => served.expect("the story's mind"),
                }
            }
        }));
    }

    /// Is gone, with every connection.
    pub async fn stop(&mut self) {
        let serving = self.serving.take().expect("it is there");
        serving.abort();
        let ended = serving.await.unwrap_err();
        assert!(ended.is_cancelled(), "{ended}");
    }

    /// What the service must be told.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far, but for how it is.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        let is_question = |asked: &&Asked| asked.path != "/health";
        asked.iter().filter(is_question).cloned().collect()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let Some(serving) = &self.serving else {
            return;
        };
        let has_failed = serving.is_finished();
        serving.abort();
        assert!(!has_failed || std::thread::panicking(), "the story's mind");
    }
}

/// Answers one request. Whoever asks may hang up at any moment.
async fn serve(mut stream: TcpStream, mind: Mind, kept: Arc<Mutex<Vec<Asked>>>) {
    let Some(asked) = read(&mut stream).await else {
        return;
    };
    kept.lock().unwrap().push(asked.clone());
    let says = mind.lock().unwrap()(&asked);
    let (status, body) = match says {
        Says::Json(status, body) => (status, body.to_string()),
        Says::Text(status, text) => (status, text),
        Says::Late(late, status, body) => {
            tokio::time::sleep(late).await;
            (status, body.to_string())
        }
        Says::Nothing => return std::future::pending().await,
    };
    let answer = format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        more(stream, &mut bytes).await?;
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ').map(ToOwned::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map(String::as_str);
    let length: usize = length.unwrap_or("0").parse().unwrap();
    while bytes.len() < end + 4 + length {
        more(stream, &mut bytes).await?;
    }
    let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
    Some(Asked {
        method,
        path,
        headers,
        body,
    })
}

/// `None` when the client has hung up.
async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(bytes).await;
    (read.ok()? > 0).then_some(())
}
