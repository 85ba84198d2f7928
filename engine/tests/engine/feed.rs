//! The feed: whoever listens hears everything in order, whatever the pace, and nobody takes another's place.

use device_ota_domain::event::{Event, EventFilter, EventType, StoredEvent};
use device_ota_engine::feed::{Full, MAX_READERS, MAX_READERS_OF_SUBJECT, ReadError, Reader, Told};
use serde_json::json;

use crate::fixture::Fixture;

/// Events of this many are more than the feed has at hand for those who listen.
const MANY: usize = 20 * 256;

impl Fixture {
    async fn tell(&self, count: usize) {
        let at = self.engine.clock().now();
        let event = Event {
            event_type: EventType::DeviceOffline,
            entity: "d".into(),
            data: json!({ "device_id": "d" }),
            at,
        };
        let mut tx = self.store.begin().await.unwrap();
        tx.append_events(&vec![event; count]).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn reads(&self, after: Option<i64>) -> Reader {
        self.engine
            .read_feed("someone", EventFilter::default(), after)
            .await
            .unwrap()
    }
}

async fn event(reader: &mut Reader) -> StoredEvent {
    let next = tokio::time::timeout(std::time::Duration::from_secs(30), reader.next());
    match next.await.unwrap().unwrap() {
        Told::Event(event) => event,
        gap @ Told::Gap { .. } => panic!("{gap:?}"),
    }
}

#[tokio::test]
async fn a_reader_that_falls_behind_catches_up_by_itself() {
    let fixture = Fixture::new().await;
    fixture.tell(1).await;
    let (mut quick, mut slow) = (fixture.reads(Some(0)).await, fixture.reads(Some(0)).await);
    assert_eq!(event(&mut quick).await.id, 1);
    assert_eq!(event(&mut slow).await.id, 1);
    // From here on both listen.
    fixture.tell(1).await;
    assert_eq!(event(&mut quick).await.id, 2);
    assert_eq!(event(&mut slow).await.id, 2);
    fixture.tell(MANY).await;
    for id in 3..3 + i64::try_from(MANY).unwrap() {
        assert_eq!(event(&mut quick).await.id, id);
    }
    // The feed has long dropped the first of them.
    for id in 3..3 + i64::try_from(MANY).unwrap() {
        assert_eq!(event(&mut slow).await.id, id);
    }
    assert_eq!(slow.place(), quick.place());
    fixture.stop().await;
}

#[tokio::test]
async fn who_was_away_for_too_long_is_told_so() {
    let fixture = Fixture::new().await;
    fixture.tell(10).await;
    let ever = jiff::Timestamp::MAX;
    let pruned = fixture.store.prune_events(&[], ever, ever, 4).await;
    assert_eq!(pruned.unwrap(), 4);
    for (place, resumes_after) in [(3, 4), (99, 4)] {
        let mut reader = fixture.reads(Some(place)).await;
        let told = reader.next().await.unwrap();
        assert_eq!(
            told,
            Told::Gap {
                place,
                resumes_after
            }
        );
        assert_eq!(event(&mut reader).await.id, 5);
    }
    let mut reader = fixture.reads(Some(4)).await;
    assert_eq!(event(&mut reader).await.id, 5, "nothing is missing");
    fixture.stop().await;
}

/// Whoever has been given a stream may act at once: what follows is told, whenever the first look comes.
#[tokio::test]
async fn who_listens_hears_what_happens_from_that_moment_on() {
    let fixture = Fixture::new().await;
    fixture.tell(3).await;
    let mut reader = fixture.reads(None).await;
    assert_eq!(reader.place(), 3);
    fixture.tell(1).await;
    assert_eq!(event(&mut reader).await.id, 4);
    fixture.stop().await;
}

/// A page's worth is read, and what would follow is let go before the next.
#[tokio::test]
async fn a_hole_that_opens_on_the_way_is_told() {
    let fixture = Fixture::new().await;
    fixture.tell(MANY).await;
    let mut reader = fixture.reads(Some(0)).await;
    assert_eq!(event(&mut reader).await.id, 1);
    let (ever, all) = (jiff::Timestamp::MAX, u32::try_from(MANY).unwrap());
    let pruned = fixture.store.prune_events(&[], ever, ever, all - 1).await;
    assert_eq!(pruned.unwrap(), u64::from(all - 1));
    let last = loop {
        match reader.next().await.unwrap() {
            Told::Event(event) => assert!(event.id < i64::from(all)),
            Told::Gap { resumes_after, .. } => break resumes_after,
        }
    };
    assert_eq!(last, i64::from(all - 1));
    assert_eq!(event(&mut reader).await.id, i64::from(all));
    fixture.stop().await;
}

#[tokio::test]
async fn the_room_is_shared_out_and_given_back() {
    let fixture = Fixture::new().await;
    let read = async |subject: &str| {
        let reading = fixture
            .engine
            .read_feed(subject, EventFilter::default(), None);
        match reading.await {
            Ok(reader) => Ok(reader),
            Err(ReadError::Full(full)) => Err(full),
            Err(error) => panic!("{error}"),
        }
    };
    let mut readers: Vec<Reader> = Vec::new();
    for _ in 0..MAX_READERS_OF_SUBJECT {
        readers.push(read("a").await.unwrap());
    }
    assert_eq!(read("a").await.err(), Some(Full::Subject));
    for n in 0..MAX_READERS - MAX_READERS_OF_SUBJECT {
        readers.push(read(&format!("s{n}")).await.unwrap());
    }
    assert_eq!(read("b").await.err(), Some(Full::Everybody));
    readers.remove(0);
    assert!(read("a").await.is_ok());
    fixture.stop().await;
}
