//! What the service writes, kept line by line: for waiting on a line, for showing after a failure, and for finding
//! errors and panics that no client saw.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// The lines of one run of the service, from both of its streams.
#[derive(Clone)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    count: watch::Sender<usize>,
}

/// Said in place of a line when a stream ends.
const ENDED: &str = "-- end of stream";

impl Log {
    pub fn new() -> Self {
        Self {
            lines: Arc::default(),
            count: watch::Sender::new(0),
        }
    }

    /// Reads a stream to its end, on a thread of its own.
    pub fn capture(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.push(line);
            }
            log.push(ENDED.to_owned());
        });
    }

    fn push(&self, line: String) {
        let mut lines = self.lines.lock().unwrap();
        lines.push(line);
        self.count.send_replace(lines.len());
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The first line that `pick` takes, now or later; `None` when both streams end without it.
    pub async fn find<T>(&self, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let mut changes = self.count.subscribe();
        let mut seen = 0;
        let mut ended = 0;
        loop {
            changes.borrow_and_update();
            let lines = self.lines();
            for line in lines.iter().skip(seen) {
                if let Some(found) = pick(line) {
                    return Some(found);
                }
                ended += usize::from(line == ENDED);
            }
            seen = lines.len();
            if ended == 2 || changes.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Lines that tell of something that must not happen in the background.
    pub fn defects(&self, expected: &[&str]) -> Vec<String> {
        let is_defect = |line: &String| {
            let error = line.contains("\"level\":\"ERROR\"") || line.contains(" ERROR ");
            let panic = line.contains("panicked at");
            (error || panic) && !expected.iter().any(|text| line.contains(text))
        };
        self.lines().into_iter().filter(is_defect).collect()
    }
}
