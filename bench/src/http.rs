//! Just enough HTTP/1.1: one request a connection for set-up, and the reading of answers for load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

/// How long an answer to a single request may take.
const ANSWER_TIME: Duration = Duration::from_mins(2);
/// Largest answer that is read, bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Where the service is and how to get in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin<'s> {
    pub(crate) addr: SocketAddr,
    pub(crate) key: &'s str,
}

impl Admin<'_> {
    /// POSTs JSON (nothing, when `None`) and gives back the answer's.
    pub(crate) fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let content = if body.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {}\r\n{content}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.key,
            body.len()
        );
        let mut stream = open(self.addr)?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        answer(stream).with_context(|| format!("POST {path}"))
    }

    /// GETs JSON.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {}\r\nConnection: close\r\n\r\n",
            self.key
        );
        let mut stream = open(self.addr)?;
        stream.write_all(head.as_bytes())?;
        answer(stream).with_context(|| format!("GET {path}"))
    }

    /// Uploads an image of `size` bytes that `piece` is repeated for; the first bytes make it differ from others.
    pub(crate) fn upload(&self, image: &Image<'_>) -> anyhow::Result<Value> {
        const BOUNDARY: &str = "bench-boundary-7d1f";
        let metadata = serde_json::json!({
            "name": image.name, "version": image.version, "device_model": image.model, "manufacturer": "Bench",
        });
        let before = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{metadata}\r\n\
             --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"image.bin\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let after = format!("\r\n--{BOUNDARY}--\r\n");
        let length = before.len() as u64 + image.size + after.len() as u64;
        let head = format!(
            "POST /api/v1/ota/firmware HTTP/1.1\r\nHost: bench\r\nX-API-Key: {}\r\n\
             Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n",
            self.key
        );
        let mut stream = open(self.addr)?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(before.as_bytes())?;
        image.pieces(|piece| stream.write_all(piece))?;
        stream.write_all(after.as_bytes())?;
        answer(stream).context("upload")
    }
}

/// An image made of one piece, repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image<'p> {
    pub(crate) name: &'p str,
    pub(crate) version: &'p str,
    pub(crate) model: &'p str,
    pub(crate) size: u64,
    pub(crate) piece: &'p [u8],
}

impl Image<'_> {
    /// Its bytes in order.
    pub(crate) fn pieces(
        &self,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut left = usize::try_from(self.size).unwrap_or(usize::MAX);
        // The version makes images of the same piece differ.
        let mark = self.version.as_bytes();
        let mark = mark.get(..mark.len().min(left)).unwrap_or_default();
        take(mark)?;
        left -= mark.len();
        while left > 0 && !self.piece.is_empty() {
            let now = self
                .piece
                .get(..left.min(self.piece.len()))
                .unwrap_or_default();
            take(now)?;
            left -= now.len();
        }
        Ok(())
    }
}

/// GETs a path that needs no key; true when the answer is 200.
pub(crate) fn is_ok(addr: SocketAddr, path: &str) -> anyhow::Result<bool> {
    let mut stream = open(addr)?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(bytes.starts_with(b"HTTP/1.1 200"))
}

/// Fetches what an `http://` link on a numeric address leads to; answers how many bytes it was.
pub(crate) fn fetch(url: &str) -> anyhow::Result<u64> {
    let rest = url.strip_prefix("http://").context("no http:// link")?;
    let (host, path) = rest.split_once('/').context("a link without a path")?;
    let mut stream = open(host.parse()?)?;
    stream.write_all(
        format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let (mut buffer, mut head, mut body) = (vec![0; 256 * 1024], Vec::new(), None);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return body.context("the answer has no head");
        }
        if let Some(body) = &mut body {
            *body += count as u64;
            continue;
        }
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if let Some(length) = head_length(&head) {
            anyhow::ensure!(
                head.starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&head)
            );
            body = Some((head.len() - length) as u64);
        }
    }
}

fn open(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    Ok(stream)
}

fn answer(stream: TcpStream) -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    let head_end = head_length(&bytes).context("the answer has no head")?;
    let (head, body) = bytes
        .split_at_checked(head_end)
        .context("the answer is cut off")?;
    let ok = head.starts_with(b"HTTP/1.1 2");
    anyhow::ensure!(
        ok,
        "{} {}",
        String::from_utf8_lossy(head)
            .lines()
            .next()
            .unwrap_or_default(),
        String::from_utf8_lossy(body)
    );
    serde_json::from_slice(body).context("the answer is not JSON")
}

/// Length of the head of an answer, once it is whole.
pub(crate) fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// Length of the whole answer that `bytes` begins with, once its head is whole.
pub(crate) fn answer_length(bytes: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let head = head_length(bytes)?;
    let lines = bytes.get(..head)?.split(|byte| *byte == b'\n');
    let mut lines = lines.filter_map(|line| line.split_at_checked(NAME.len()));
    let (_, value) = lines.find(|(name, _)| name.eq_ignore_ascii_case(NAME))?;
    let body: usize = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    Some(head + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_its_head_says() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: y\r\n\r\n{}HTTP/1.1";
        assert_eq!(answer_length(bytes), Some(bytes.len() - 8));
        assert_eq!(
            answer_length(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"),
            None
        );
    }

    #[test]
    fn an_image_has_exactly_its_size() {
        let image = Image {
            name: "n",
            version: "1.0.0",
            model: "m",
            size: 23,
            piece: b"0123456789",
        };
        let mut bytes = Vec::new();
        let taken = image.pieces(|piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert!(taken.is_ok());
        assert_eq!(bytes, b"1.0.0012345678901234567");
    }
}
