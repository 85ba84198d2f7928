//! Who waits for chunks: devices in line, each with the requests that it has not asked anew.
//!
//! A device that gave up waiting asks again. Served in the order of their coming, requests that nobody waits for any more
//! would keep those from their turn that somebody does wait for; so a request takes the place of what it asks anew, and a
//! device keeps its turn.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use device_ota_domain::DeviceId;
use device_ota_domain::device::DeviceKey;
use device_ota_protocol::messages::ChunkRequest;

use super::Wanted;
use crate::inbound::DeviceRef;

/// Requests of one device that wait; one that asks for single chunks has so many under way.
const MAX_OF_DEVICE: usize = 16;
/// Requests that wait, of all devices together; some 10 MB at most.
const MAX_WAITING: usize = 65_536;

/// Why a request was let go unserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LetGo {
    /// Its device asked for the same anew, or for another image.
    AskedAnew,
    /// Its device has asked for too much since.
    TooMany,
    /// There was no room for it.
    QueueFull,
}

impl LetGo {
    /// Its label.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::AskedAnew => "asked_anew",
            Self::TooMany => "too_many",
            Self::QueueFull => "queue_full",
        }
    }
}

/// The line.
#[derive(Default)]
pub(super) struct Line {
    devices: HashMap<DeviceKey, Device>,
    /// Devices with requests of which none is being served, by their turn.
    turns: VecDeque<DeviceKey>,
    /// Requests that wait.
    waiting: usize,
}

struct Device {
    id: DeviceId,
    requests: VecDeque<ChunkRequest>,
    is_served: bool,
}

impl Line {
    /// Takes up a request. Says how many were let go for it, and why, itself among them.
    pub(super) fn put(&mut self, wanted: Wanted) -> Option<(LetGo, u64)> {
        let Wanted { device, request } = wanted;
        let is_full = self.waiting >= MAX_WAITING;
        let of_device = match self.devices.entry(device.key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return Some((LetGo::QueueFull, 1)),
            Entry::Vacant(new) => new.insert(Device {
                id: device.id,
                requests: VecDeque::new(),
                is_served: false,
            }),
        };
        let requests = &mut of_device.requests;
        let before = requests.len();
        requests.retain(|older| !asks_anew(&request, older));
        let mut let_go = before - requests.len();
        let mut reason = LetGo::AskedAnew;
        if requests.len() >= MAX_OF_DEVICE || (is_full && let_go == 0) {
            if requests.pop_front().is_none() {
                return Some((LetGo::QueueFull, 1)); // it is being served
            }
            let_go += 1;
            reason = LetGo::TooMany;
        }
        requests.push_back(request);
        self.waiting = self.waiting + 1 - let_go;
        if before == 0 && !of_device.is_served {
            self.turns.push_back(device.key);
        }
        (let_go > 0).then_some((reason, let_go as u64))
    }

    /// The oldest request of the device whose turn it is. It has none again before [`Line::served`].
    pub(super) fn take(&mut self) -> Option<Wanted> {
        let key = self.turns.pop_front()?;
        let device = self.devices.get_mut(&key)?;
        let request = device.requests.pop_front()?;
        device.is_served = true;
        self.waiting -= 1;
        let id = device.id.clone();
        let device = DeviceRef { key, id };
        Some(Wanted { device, request })
    }

    /// Its request is done with, or ended.
    pub(super) fn served(&mut self, device: DeviceKey) {
        let Entry::Occupied(mut known) = self.devices.entry(device) else {
            return;
        };
        if known.get().requests.is_empty() {
            known.remove();
        } else {
            known.get_mut().is_served = false;
            self.turns.push_back(device);
        }
    }

    /// The number of a later request of the device that begins with this chunk of the one that is being served. It need not
    /// be served that chunk any more.
    pub(super) fn asked_anew(
        &mut self,
        device: DeviceKey,
        served: &ChunkRequest,
        offset: u64,
    ) -> Option<u32> {
        let requests = &mut self.devices.get_mut(&device)?.requests;
        let begins = |later: &ChunkRequest| {
            later.offset == offset && later.length == served.length && later.sha256 == served.sha256
        };
        let place = requests.iter().position(begins)?;
        let later = requests.get_mut(place)?;
        let number = later.request;
        later.offset += u64::from(later.length);
        later.count -= 1;
        if later.count == 0 {
            requests.remove(place);
            self.waiting -= 1;
        }
        Some(number)
    }

    /// Lets go of what a device that is being served waits for; says how many requests.
    pub(super) fn forget(&mut self, device: DeviceKey) -> u64 {
        let Some(known) = self.devices.get_mut(&device) else {
            return 0;
        };
        let forgotten = std::mem::take(&mut known.requests).len();
        self.waiting -= forgotten;
        forgotten as u64
    }
}

/// Whether who asks for the one does not wait for the other any more: some of its bytes are the same, or it is of another image.
fn asks_anew(request: &ChunkRequest, older: &ChunkRequest) -> bool {
    let end = |of: &ChunkRequest| of.offset + u64::from(of.length) * u64::from(of.count);
    request.sha256 != older.sha256 || (request.offset < end(older) && older.offset < end(request))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_protocol::digest::Digest;

    use super::*;

    /// Of chunks of 10 bytes.
    fn asks(request: u32, offset: u64, count: u32) -> ChunkRequest {
        ChunkRequest {
            request,
            sha256: Digest::of(b"image"),
            offset,
            length: 10,
            count,
        }
    }

    fn of(device: i64, request: ChunkRequest) -> Wanted {
        let id = format!("d{device}").parse().unwrap();
        let key = DeviceKey(device);
        let device = DeviceRef { key, id };
        Wanted { device, request }
    }

    /// Takes who is next, and is done with it at once.
    fn next(line: &mut Line) -> Option<(i64, u32)> {
        let wanted = line.take()?;
        line.served(wanted.device.key);
        Some((wanted.device.key.0, wanted.request.request))
    }

    #[test]
    fn devices_take_turns_however_much_each_has_asked_for() {
        let mut line = Line::default();
        for n in 0..4 {
            assert_eq!(line.put(of(1, asks(n, u64::from(n) * 10, 1))), None);
        }
        line.put(of(2, asks(7, 0, 1)));
        line.put(of(3, asks(8, 0, 1)));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut line)).collect();
        assert_eq!(order, [(1, 0), (2, 7), (3, 8), (1, 1), (1, 2), (1, 3)]);
        assert!(line.devices.is_empty() && line.waiting == 0);
    }

    #[test]
    fn what_is_asked_anew_takes_the_place_of_what_waits_and_keeps_the_turn() {
        let mut line = Line::default();
        line.put(of(1, asks(1, 0, 8)));
        line.put(of(2, asks(1, 0, 8)));
        for again in 2..50 {
            let let_go = line.put(of(1, asks(again, 0, 8)));
            assert_eq!(let_go, Some((LetGo::AskedAnew, 1)));
        }
        // What follows is asked for besides, and some of it anew.
        assert_eq!(line.put(of(1, asks(50, 80, 8))), None);
        let let_go = line.put(of(1, asks(51, 150, 2)));
        assert_eq!(let_go, Some((LetGo::AskedAnew, 1)));
        assert_eq!(line.waiting, 3);
        let order: Vec<_> = std::iter::from_fn(|| next(&mut line)).collect();
        assert_eq!(order, [(1, 49), (2, 1), (1, 51)]);
    }

    #[test]
    fn who_wants_another_image_waits_for_the_former_no_more() {
        let mut line = Line::default();
        line.put(of(1, asks(1, 0, 1)));
        line.put(of(1, asks(2, 10, 1)));
        let sha256 = Digest::of(b"another");
        let other = ChunkRequest {
            sha256,
            ..asks(3, 40, 1)
        };
        assert_eq!(line.put(of(1, other)), Some((LetGo::AskedAnew, 2)));
        assert_eq!(next(&mut line), Some((1, 3)));
        assert_eq!(next(&mut line), None);
    }

    #[test]
    fn a_device_is_served_one_request_at_a_time_also_when_it_asks_meanwhile() {
        let mut line = Line::default();
        line.put(of(1, asks(1, 0, 1)));
        line.put(of(1, asks(2, 10, 1)));
        assert!(line.take().is_some());
        line.put(of(1, asks(3, 20, 1)));
        assert!(line.take().is_none());
        line.served(DeviceKey(1));
        assert_eq!(next(&mut line), Some((1, 2)));
        assert_eq!(next(&mut line), Some((1, 3)));
        assert_eq!(next(&mut line), None);
    }

    #[test]
    fn what_is_served_goes_by_the_number_that_it_was_asked_anew_with() {
        let mut line = Line::default();
        line.put(of(1, asks(1, 0, 3)));
        let served = line.take().unwrap().request;
        let by = |line: &mut Line, offset| line.asked_anew(DeviceKey(1), &served, offset);
        assert_eq!(by(&mut line, 0), None);
        line.put(of(1, asks(2, 10, 3)));
        assert_eq!(by(&mut line, 10), Some(2));
        assert_eq!(by(&mut line, 20), Some(2));
        assert_eq!(by(&mut line, 20), None, "once");
        line.served(DeviceKey(1));
        // What was not of the first one is left.
        let left = line.take().unwrap().request;
        assert_eq!(left, asks(2, 30, 1));
        line.put(of(1, asks(3, 30, 1)));
        let anew = line.asked_anew(DeviceKey(1), &left, 30);
        assert_eq!(anew, Some(3));
        line.served(DeviceKey(1));
        assert_eq!(next(&mut line), None);
        assert!(line.devices.is_empty() && line.waiting == 0);
    }

    #[test]
    fn what_waits_for_a_device_and_for_all_is_bounded() {
        let mut line = Line::default();
        let most = u32::try_from(MAX_OF_DEVICE).unwrap();
        for n in 0..most {
            assert_eq!(line.put(of(0, asks(n, u64::from(n) * 10, 1))), None);
        }
        let one_more = of(0, asks(most, u64::from(most) * 10, 1));
        assert_eq!(line.put(one_more), Some((LetGo::TooMany, 1)));
        assert_eq!(line.waiting, MAX_OF_DEVICE);
        let mut others = 1..;
        while line.waiting < MAX_WAITING {
            let device = others.next().unwrap();
            assert_eq!(line.put(of(device, asks(1, 0, 1))), None);
        }
        let stranger = of(-1, asks(1, 0, 1));
        assert_eq!(line.put(stranger), Some((LetGo::QueueFull, 1)));
        // Who waits may still change its mind.
        let anew = of(7, asks(2, 0, 1));
        assert_eq!(line.put(anew), Some((LetGo::AskedAnew, 1)));
        let other = of(7, asks(3, 10, 1));
        assert_eq!(line.put(other), Some((LetGo::TooMany, 1)));
        assert_eq!(line.waiting, MAX_WAITING);
        assert_eq!(next(&mut line), Some((0, 1)));
        assert_eq!(line.waiting, MAX_WAITING - 1);
    }

    #[test]
    fn who_is_gone_waits_for_nothing() {
        let mut line = Line::default();
        for n in 0..3 {
            line.put(of(1, asks(n, u64::from(n) * 10, 1)));
        }
        line.take().unwrap();
        assert_eq!(line.forget(DeviceKey(1)), 2);
        line.served(DeviceKey(1));
        assert!(line.devices.is_empty() && line.waiting == 0);
        line.put(of(1, asks(4, 0, 1)));
        assert_eq!(next(&mut line), Some((1, 4)));
    }
}
