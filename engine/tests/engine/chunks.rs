//! Images in chunks, from an object store far away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use device_ota_engine::ports::Delivery;
use tokio::time::timeout;

use crate::far::{FarObjects, Read, Reads};
use crate::fixture::{Chunk, Fixture};

const CHUNK: u64 = 4_096;
const WINDOW: u32 = 8;

/// An image of so many chunks, the last one of which is short.
fn image(chunks: u64) -> Vec<u8> {
    let bytes = (0_u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    let size = chunks * CHUNK - 100;
    bytes.take(usize::try_from(size).unwrap()).collect()
}

/// The bytes of a chunk, which must be those of the image.
fn is_of(image: &[u8], chunk: &Chunk) {
    let from = usize::try_from(chunk.offset).unwrap();
    let to = image.len().min(from + usize::try_from(CHUNK).unwrap());
    assert!(chunk.bytes == image[from..to], "{} {}", chunk.device, from);
}

async fn far() -> (Fixture, Reads) {
    let (objects, reads) = FarObjects::new();
    let fixture = Fixture::with_objects(|folder| objects.over(folder)).await;
    (fixture, reads)
}

#[tokio::test]
async fn a_fleet_gets_its_image_and_each_request_is_read_at_once() {
    let (mut fixture, reads) = far().await;
    let image = image(46);
    let fleet = fixture.offered(&image, 30).await;
    let reads = reads.after(Duration::from_millis(40));
    let mut got: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for device in &fleet {
        fixture.ask(device, &image, 1, (0, WINDOW)).await;
    }
    let all = async {
        let mut done = 0;
        while done < fleet.len() {
            let chunk = fixture.chunk().await;
            is_of(&image, &chunk);
            let device = fleet.iter().find(|d| d.id == chunk.device).unwrap();
            let offsets = got.entry(chunk.device).or_default();
            assert!(offsets.insert(chunk.offset), "{} twice", chunk.offset);
            let next = offsets.len() as u64 * CHUNK;
            if next >= image.len() as u64 {
                done += 1;
            } else if offsets.len().is_multiple_of(WINDOW as usize) {
                let request = chunk.request + 1;
                fixture.ask(device, &image, request, (next, WINDOW)).await;
            }
        }
    };
    let in_time = timeout(Duration::from_secs(30), all).await;
    assert!(in_time.is_ok(), "{} devices began", got.len());
    let windows = 46_usize.div_ceil(WINDOW as usize);
    assert_eq!(reads.load(Ordering::SeqCst), fleet.len() * windows);
    fixture.stop().await;
}

#[tokio::test]
async fn what_was_given_up_is_not_served_and_who_asks_anew_has_it_by_the_last_number() {
    let (mut fixture, mut reads) = far().await;
    let image = image(16);
    let fleet = fixture.offered(&image, 1).await;
    fixture.ask(&fleet[0], &image, 1, (0, WINDOW)).await;
    let first = reads.next().await;
    assert_eq!(first.from, 0);
    for again in 2..=4 {
        fixture.ask(&fleet[0], &image, again, (0, WINDOW)).await;
    }
    first.go_on();
    for n in 0..u64::from(WINDOW) {
        let chunk = fixture.chunk().await;
        assert_eq!((chunk.request, chunk.offset), (4, n * CHUNK));
        is_of(&image, &chunk);
    }
    // The next read is of what follows.
    let from = u64::from(WINDOW) * CHUNK;
    fixture.ask(&fleet[0], &image, 5, (from, WINDOW)).await;
    let second = reads.next().await;
    assert_eq!(second.from, from);
    second.go_on();
    assert_eq!(fixture.chunk().await.request, 5);
    fixture
        .comes_to("chunk_requests_dropped", "asked_anew", 2)
        .await;
    fixture.stop().await;
}

/// Lets the read of those that starts there go on.
fn answer(reads: &mut Vec<Read>, from: u64) {
    let place = reads.iter().position(|read| read.from == from).unwrap();
    reads.remove(place).go_on();
}

#[tokio::test]
async fn sixteen_devices_are_served_side_by_side_and_in_turn_whatever_one_of_them_asks_for() {
    let (mut fixture, mut reads) = far().await;
    let image = image(64);
    let fleet = fixture.offered(&image, 18).await;
    // The first one wants a dozen chunks, one by one; the others one each, from behind.
    for n in 0..12_u32 {
        let at = u64::from(n) * CHUNK;
        fixture.ask(&fleet[0], &image, n, (at, 1)).await;
    }
    let of = |device: u64| (20 + device) * CHUNK;
    for (device, place) in fleet.iter().zip(0..).skip(1) {
        fixture.ask(device, &image, 1, (of(place), 1)).await;
    }
    let mut under_way = Vec::new();
    for _ in 0..16 {
        under_way.push(reads.next().await);
    }
    let starts: BTreeSet<u64> = under_way.iter().map(|read| read.from).collect();
    let sixteen = std::iter::once(0).chain((1..16).map(of)).collect();
    assert_eq!(starts, sixteen);
    assert_eq!(reads.now(), None);
    // Two more wait before the first one's second turn.
    for (done, next) in [(0, of(16)), (of(1), of(17)), (of(2), CHUNK)] {
        answer(&mut under_way, done);
        assert_eq!(fixture.chunk().await.offset, done);
        under_way.push(reads.next().await);
        assert_eq!(under_way.last().unwrap().from, next);
    }
    assert_eq!(reads.now(), None);
    // Nor does what hangs hold up the end.
    fixture.stop().await;
}

#[tokio::test]
async fn a_read_that_hangs_is_ended_and_holds_up_nobody_else() {
    let (mut fixture, mut reads) = far().await;
    let image = image(16);
    let fleet = fixture.offered(&image, 2).await;
    fixture.ask(&fleet[0], &image, 1, (0, WINDOW)).await;
    let hangs = reads.next().await;
    for (request, place) in (1..).zip([4, 5, 6]) {
        let at = (place * CHUNK, 1);
        fixture.ask(&fleet[1], &image, request, at).await;
        reads.next().await.go_on();
        let chunk = fixture.chunk().await;
        assert_eq!((&chunk.device, chunk.request), (&fleet[1].id, request));
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    fixture
        .comes_to("chunk_requests_refused", "storage_hangs", 1)
        .await;
    fixture.ask(&fleet[0], &image, 2, (0, 1)).await;
    reads.next().await.go_on();
    let chunk = fixture.chunk().await;
    assert_eq!((&chunk.device, chunk.request), (&fleet[0].id, 2));
    drop(hangs);
    fixture.stop().await;
}

#[tokio::test]
async fn who_is_gone_reads_slowly_or_has_no_offer_is_sent_no_more() {
    let (mut fixture, mut reads) = far().await;
    let image = image(32);
    let fleet = fixture.offered(&image, 1).await;
    let device = &fleet[0];
    let behind = (u64::from(WINDOW) * CHUNK, WINDOW);
    // What is gone waits for nothing: of two requests one was read.
    fixture.ask(device, &image, 1, (0, WINDOW)).await;
    let first = reads.next().await;
    fixture.ask(device, &image, 2, behind).await;
    fixture.deliver(device, Delivery::NotConnected);
    first.go_on();
    fixture
        .comes_to("chunk_requests_refused", "not_connected", 2)
        .await;
    // Of what is read slowly the rest is left out, and what follows is tried.
    fixture.deliver(device, Delivery::Busy);
    fixture.ask(device, &image, 3, (0, WINDOW)).await;
    let third = reads.next().await;
    assert_eq!(third.from, 0);
    fixture.ask(device, &image, 4, behind).await;
    third.go_on();
    fixture
        .comes_to("chunk_requests_refused", "device_reads_slowly", 1)
        .await;
    let fourth = reads.next().await;
    assert_eq!(fourth.from, behind.0);
    fixture.deliver(device, Delivery::Queued);
    fourth.go_on();
    for n in 0..u64::from(WINDOW) {
        let chunk = fixture.chunk().await;
        assert_eq!((chunk.request, chunk.offset), (4, behind.0 + n * CHUNK));
    }
    // Without an offer nothing is read.
    let stranger = fixture.device("stranger").await;
    fixture.ask(&stranger, &image, 1, (0, 1)).await;
    fixture
        .comes_to("chunk_requests_refused", "no_offer", 1)
        .await;
    fixture.ask(device, b"another image", 5, (0, 1)).await;
    fixture
        .comes_to("chunk_requests_refused", "other_image", 1)
        .await;
    assert_eq!(reads.now(), None);
    fixture.stop().await;
}
