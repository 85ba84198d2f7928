//! The feed: whoever listens hears everything in order, whatever the pace, and nobody takes another's place.

use device_ota_domain::event::{Event, EventFilter, EventType, StoredEvent};
use device_ota_engine::feed::{Full, MAX_READERS, MAX_READERS_OF_SUBJECT, Reader, Told};
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

    fn reads(&self, after: Option<i64>) -> Reader {
        self.engine
            .read_feed("someone", EventFilter::default(), after)
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
    let (mut quick, mut slow) = (fixture.reads(Some(0)), fixture.reads(Some(0)));
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
        let mut reader = fixture.reads(Some(place));
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
    let mut reader = fixture.reads(Some(4));
    assert_eq!(event(&mut reader).await.id, 5, "nothing is missing");
    fixture.stop().await;
}

#[tokio::test]
async fn the_room_is_shared_out_and_given_back() {
    let fixture = Fixture::new().await;
    let read = |subject: &str| {
        fixture
            .engine
            .read_feed(subject, EventFilter::default(), None)
    };
    let mut readers: Vec<Reader> = (0..MAX_READERS_OF_SUBJECT)
        .map(|_| read("a").unwrap())
        .collect();
    assert_eq!(read("a").err(), Some(Full::Subject));
    let subjects = (0..MAX_READERS - MAX_READERS_OF_SUBJECT).map(|n| format!("s{n}"));
    readers.extend(subjects.map(|subject| read(&subject).unwrap()));
    assert_eq!(read("b").err(), Some(Full::Everybody));
    readers.remove(0);
    assert!(read("a").is_ok());
    fixture.stop().await;
}
