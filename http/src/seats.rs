//! How much may be under way at once: connections of an address, uploads, downloads. What lasts as long as a client likes
//! has a bound in all and a smaller one for each, so that nobody can keep the others out.

pub(crate) mod places;

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use http::header::RETRY_AFTER;

use crate::errors::ApiError;
use places::{Full, Place, Places};

/// Most connections of a listener at a time. The rest wait in the kernel's queue; the process needs its files for devices.
pub const MAX_CONNECTIONS: usize = 2_048;
/// Connections of one address at a time, an IPv6 address counting as its /64 network, unless a setting says otherwise: a
/// page in a browser opens six, a fleet behind one address seldom more than this at once.
pub const CONNECTIONS_OF_ADDRESS: usize = 256;
/// Most uploads at a time: each may write 500 MB to the disk.
const MAX_UPLOADS: usize = 16;
/// Most uploads of one subject at a time: the others always find room.
const UPLOADS_OF_SUBJECT: usize = 8;
/// Most downloads at a time, a quarter of the connections: a reader may be as slow as its line, and each holds a piece
/// of the image in memory, some 256 KiB. An address may have half as many as it may have connections.
const DOWNLOADS_PART: usize = 4;
/// When to come back, in seconds: an upload or a download is seldom over sooner.
const RETRY_AFTER_SECONDS: u64 = 10;

/// What is under way; one for all listeners of a service.
#[derive(Clone)]
pub struct Seats {
    pub(crate) connections: usize,
    pub(crate) connections_of_address: usize,
    uploads: Arc<Places<String>>,
    downloads: Arc<Places<IpAddr>>,
}

impl Seats {
    /// With so many connections for each listener, [`MAX_CONNECTIONS`] or what files are left for, and so many for one
    /// address: [`CONNECTIONS_OF_ADDRESS`], or up to [`MAX_CONNECTIONS`] where all clients come through a proxy.
    pub fn new(connections: usize, connections_of_address: usize) -> Self {
        let downloads_of_address = (connections_of_address / 2).max(1);
        Self {
            connections,
            connections_of_address,
            uploads: Places::new(MAX_UPLOADS, UPLOADS_OF_SUBJECT),
            downloads: Places::new((connections / DOWNLOADS_PART).max(1), downloads_of_address),
        }
    }

    /// A seat for an upload of this subject: 429 `uploads_busy` when it has as many as it may, 503 when all are taken.
    pub(crate) fn upload(&self, subject: &str) -> Result<Place<String>, ApiError> {
        self.uploads
            .take(subject.to_owned())
            .map_err(|full| match full {
                Full::One => busy(
                    StatusCode::TOO_MANY_REQUESTS,
                    "uploads_busy",
                    &format!("{UPLOADS_OF_SUBJECT} uploads of {subject:?} are under way, the most that one may have"),
                ),
                Full::All => busy(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "uploads_busy",
                    &format!("{MAX_UPLOADS} uploads are under way, the most that are taken at once"),
                ),
            })
    }

    /// A seat for a download to this network: 503 `downloads_busy` when there is none, which devices know to wait for.
    pub(crate) fn download(&self, network: IpAddr) -> Result<Place<IpAddr>, ApiError> {
        self.downloads.take(network).map_err(|full| {
            let whose = match full {
                Full::One => "to your address",
                Full::All => "in all",
            };
            busy(
                StatusCode::SERVICE_UNAVAILABLE,
                "downloads_busy",
                &format!("there are as many downloads {whose} as there may be"),
            )
        })
    }
}

impl Default for Seats {
    fn default() -> Self {
        Self::new(MAX_CONNECTIONS, CONNECTIONS_OF_ADDRESS)
    }
}

fn busy(status: StatusCode, code: &'static str, why: &str) -> ApiError {
    let detail = format!("{why}; try again in {RETRY_AFTER_SECONDS} s");
    ApiError::new(status, code, detail).with(RETRY_AFTER, RETRY_AFTER_SECONDS.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn told<T>(seat: Result<T, ApiError>) -> (u16, &'static str) {
        let error = seat.err().unwrap();
        let code = error.code();
        let response = error.render("r");
        assert_eq!(response.headers()[RETRY_AFTER], "10");
        (response.status().as_u16(), code)
    }

    #[test]
    fn one_subject_leaves_room_for_others_uploads() {
        let seats = Seats::default();
        let mut held: Vec<_> = (0..8).map(|_| seats.upload("a").unwrap()).collect();
        assert_eq!(told(seats.upload("a")), (429, "uploads_busy"));
        held.extend((0..8).map(|_| seats.upload("b").unwrap()));
        assert_eq!(told(seats.upload("c")), (503, "uploads_busy"));
        held.pop();
        seats.upload("c").unwrap();
    }

    #[test]
    fn one_address_leaves_room_for_others_downloads() {
        let seats = Seats::new(MAX_CONNECTIONS, 4);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let held = [seats.download(one).unwrap(), seats.download(one).unwrap()];
        assert_eq!(told(seats.download(one)), (503, "downloads_busy"));
        seats.download(other).unwrap();
        drop(held);
        seats.download(one).unwrap();
    }
}
