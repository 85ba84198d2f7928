//! What metrics show of the database: counters that are kept anyway, and the ends of indexes.

use device_ota_domain::update::Action;
use device_ota_domain::webhook::WebhookStatus;
use device_ota_engine::ports::telemetry::{Snapshot, WEBHOOK};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::outbox;
use crate::sql::{self, Args, statements};

statements! {
    CAMPAIGNS_NOW = "SELECT status, COUNT(*) AS campaigns FROM update_campaigns \
         WHERE status IN ('created', 'in_progress', 'paused', 'rolling_back') AND deleted_at IS NULL \
         GROUP BY status ORDER BY status";
    UPDATES_NOW = "SELECT s.action, CAST(SUM(s.pending) AS BIGINT) AS pending, \
         CAST(SUM(s.in_flight) AS BIGINT) AS in_flight, CAST(SUM(s.staged) AS BIGINT) AS staged, CAST(SUM(s.completed) AS BIGINT) AS completed, \
         CAST(SUM(s.failed) AS BIGINT) AS failed, CAST(SUM(s.cancelled) AS BIGINT) AS cancelled \
         FROM update_campaigns c JOIN campaign_stages s ON s.campaign_id = c.campaign_id \
         WHERE c.status IN ('in_progress', 'paused', 'rolling_back') GROUP BY s.action ORDER BY s.action";
    ALL_UPDATES = "SELECT action, state, CAST(SUM(updates) AS BIGINT) AS updates FROM update_figures GROUP BY action, state";
    PLACES = "SELECT sink, place FROM outbox_places WHERE sink {any:$1}";
    WEBHOOKS_NOW = "SELECT status, COUNT(*) AS webhooks, MIN(place) AS place FROM webhooks GROUP BY status";
}

/// The states of a campaign that has not ended.
const OPEN: [&str; 4] = ["created", "in_progress", "paused", "rolling_back"];

/// The groups of a campaign's counters, as columns are named.
const STATES: [&str; 6] = [
    "pending",
    "in_flight",
    "staged",
    "completed",
    "failed",
    "cancelled",
];

/// Every action and state, with what was counted of it, or 0.
fn by_state<S: AsRef<str>>(counted: &[(String, S, u64)]) -> Vec<(&'static str, &'static str, u64)> {
    let each = |action: Action| STATES.map(|state| (action.name(), state));
    let count = |(action, state): (&'static str, &'static str)| {
        let mut known = counted.iter();
        let found = known.find(|(a, s, _)| a == action && s.as_ref() == state);
        (action, state, found.map_or(0, |(.., count)| *count))
    };
    Action::ALL.into_iter().flat_map(each).map(count).collect()
}

/// Reads all of it; of receivers, those of these names, each with that of its place in the outbox, and the webhooks.
pub(crate) async fn read<D: Dialect>(
    conn: &mut D::Connection,
    sinks: &[(&'static str, String)],
) -> Result<Snapshot, DbError> {
    let campaigns = sql::fetch_all::<D, _>(conn, &CAMPAIGNS_NOW, Args::new(), |row| {
        Ok((row.string("status")?, row.uint("campaigns")?))
    })
    .await?;
    let counted = sql::fetch_all::<D, _>(conn, &UPDATES_NOW, Args::new(), |row| {
        let action = row.string("action")?;
        let of_state = |state| Ok((action.clone(), state, row.uint(state)?));
        STATES
            .into_iter()
            .map(of_state)
            .collect::<Result<Vec<_>, DbError>>()
    })
    .await?;
    let counted = counted.concat();
    let all = sql::fetch_all::<D, _>(conn, &ALL_UPDATES, Args::new(), |row| {
        let updates: i64 = row.int("updates")?;
        let updates = u64::try_from(updates).unwrap_or_default();
        Ok((row.string("action")?, row.string("state")?, updates))
    })
    .await?;
    let kept = outbox::kept::<D>(conn).await?;
    let (oldest, newest) = kept.map_or((1, 0), |kept| (kept.oldest, kept.newest));
    // Whoever has never taken anything waits for all that there is.
    let behind = |place: i64| difference(newest, place.max(oldest - 1));
    let names: Vec<&str> = sinks.iter().map(|(_, place)| place.as_str()).collect();
    let args = Args::<D>::new().texts(&names);
    let places = sql::fetch_all::<D, _>(conn, &PLACES, args, |row| {
        Ok((row.string("sink")?, row.int("place")?))
    })
    .await?;
    let mut waiting = Vec::with_capacity(sinks.len() + 1);
    for (sink, place) in sinks {
        let place = places.iter().find(|(known, _)| known == place);
        waiting.push((*sink, behind(place.map_or(0, |(_, place)| *place))));
    }
    let webhooks = sql::fetch_all::<D, _>(conn, &WEBHOOKS_NOW, Args::new(), |row| {
        let counted = (row.string("status")?, row.uint("webhooks")?);
        Ok((counted, row.int("place")?))
    })
    .await?;
    let furthest = webhooks
        .iter()
        .find(|((status, _), _)| status == WebhookStatus::Active.name());
    waiting.push((WEBHOOK, furthest.map_or(0, |(_, place)| behind(*place))));
    Ok(Snapshot {
        campaigns: each(&OPEN, &campaigns),
        updates: by_state(&counted),
        all_updates: by_state(&all),
        connections: Vec::new(), // the pools know
        events_kept: difference(newest, oldest - 1),
        waiting,
        webhooks: each(
            &WebhookStatus::NAMES,
            &webhooks
                .into_iter()
                .map(|(counted, _)| counted)
                .collect::<Vec<_>>(),
        ),
    })
}

/// How many there are of each name, also when there are none.
fn each(names: &[&'static str], counted: &[(String, u64)]) -> Vec<(&'static str, u64)> {
    let count = |name: &str| {
        let found = counted.iter().find(|(known, _)| known == name);
        found.map_or(0, |(_, count)| *count)
    };
    names.iter().map(|name| (*name, count(name))).collect()
}

fn difference(newest: i64, place: i64) -> u64 {
    u64::try_from(newest - place).unwrap_or_default()
}
