//! This process among the replicas on its database.

use std::time::Duration;

use device_ota_engine::{Engine, Member};

use crate::config::{Broker, Config, Database};
use crate::edge::Edge;

/// Time that it takes at most to say that this replica has ended.
const LEAVING: Duration = Duration::from_millis(400);

/// What it begins as.
pub(crate) fn member(config: &Config, edge: &Edge, name: String) -> Member {
    Member {
        name,
        alone: matches!(config.database, Database::Sqlite(_)),
        holds_sessions: edge.holds_sessions(),
        shares_images: config.s3.is_some(),
        shares_reports: !matches!(config.broker, Broker::External { group: None, .. }),
    }
}

/// Tells the others that it is gone; else they find out by themselves.
pub(crate) async fn leave(engine: &Engine) {
    match tokio::time::timeout(LEAVING, engine.leave()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "other replicas find out by themselves that this one has ended");
        }
        Err(_) => tracing::warn!("other replicas find out by themselves that this one has ended"),
    }
}
