//! The store's contract, told as stories over both databases.
//!
//! Each story is one function over `&dyn Store` (or over the database, when it needs two replicas); `stories!` makes a
//! test a database of it.
#![expect(
    clippy::indexing_slicing,
    reason = "a story that reads past the end has failed"
)]
#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod aftermaths;
mod api_keys;
mod audit;
mod bandwidth;
mod campaigns;
mod claims;
mod combined;
mod continuous;
mod counters;
mod days;
mod devices;
mod events;
mod figures;
mod firmware;
mod fixture;
mod history;
mod lists;
mod pace;
mod replicas;
mod rings;
mod rivals;
mod rollbacks;
mod staged;
mod targets;
mod times;
mod updates;
mod vitals;
mod webhooks;
mod windows;

/// Makes a test for SQLite and one for PostgreSQL of each story.
macro_rules! stories {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    let database = device_ota_store::testing::SqliteDatabase::new();
                    let store = database.open().await;
                    super::$name(&store).await;
                    store.close().await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    let database = device_ota_store::testing::PostgresDatabase::create().await;
                    let store = database.open().await;
                    super::$name(&store).await;
                    store.close().await;
                }
            )+
        }
    };
}
pub(crate) use stories;
