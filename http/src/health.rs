//! Health: alive, ready, and every part by itself (PRD, FR-16). Open to everybody; it shows states and numbers only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use device_ota_engine::Health;
use http::StatusCode;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;
use warp::reply::Response;

use crate::dto;
use crate::request::{Call, call};
use crate::shared::{Answer, Component, Routes, Shared, reply};

/// The name of the service (PRD, *Dependencies*, Consul).
const SERVICE: &str = "ota_service";

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(health, live, ready, detailed))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let health = warp::get()
        .and(warp::path!("health"))
        .and(call.clone())
        .then(health);
    let live = warp::get()
        .and(warp::path!("health" / "live"))
        .and(call.clone())
        .then(live);
    let ready = warp::get()
        .and(warp::path!("health" / "ready"))
        .and(call.clone())
        .then(ready);
    let detailed = warp::get()
        .and(warp::path!("health" / "detailed"))
        .and(call)
        .then(detailed);
    health
        .or(live)
        .unify()
        .or(ready)
        .unify()
        .or(detailed)
        .unify()
        .map(reply)
        .boxed()
}

/// The short answer.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct Brief {
    status: &'static str,
    service: &'static str,
    version: &'static str,
    /// What is wrong, and what helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// The long answer.
#[derive(Serialize, ToSchema)]
#[schema(as = DetailedHealth)]
struct Detailed {
    status: &'static str,
    service: &'static str,
    version: &'static str,
    components: BTreeMap<&'static str, State>,
    #[schema(value_type = BTreeMap<String, String>)]
    listening: BTreeMap<&'static str, SocketAddr>,
    /// Of the services on this database; a few seconds old.
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<Replicas>,
    uplinks_waiting: usize,
    counters: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

/// This process among the replicas, which have numbers in the order in which they began.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplicasHealth)]
struct Replicas {
    /// How many live, this one included.
    live: usize,
    /// The number of this one.
    this: i64,
    /// The number of the one that serves webhooks and NATS for all.
    leader: i64,
}

/// One part.
#[derive(Serialize, ToSchema)]
#[schema(as = ComponentHealth)]
struct State {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    address: Option<SocketAddr>,
}

/// This process answers
///
/// It asks nothing of anybody, so that a slow database does not get the process restarted.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It does", body = Brief),
))]
async fn health(call: Call) -> Answer {
    live(call).await
}

/// This process is alive
#[utoipa::path(get, path = "/health/live", tag = "health", responses(
    (status = 200, description = "It is", body = Brief),
))]
async fn live(call: Call) -> Answer {
    Ok(dto::ok(&brief("healthy", call.shared.version)))
}

/// Requests can be served
///
/// After a write that failed, none can before another one succeeds, which is tried while somebody asks here.
#[utoipa::path(get, path = "/health/ready", tag = "health", responses(
    (status = 200, description = "They can", body = Brief),
    (status = 503, description = "The database or another essential part is away, or the database takes no writes", body = Brief),
))]
async fn ready(call: Call) -> Answer {
    let health = call.shared.engine.health().await;
    let components = (call.shared.components)();
    let detail = missing(&health, &components);
    let ready = detail.is_none();
    let status = if ready { "ready" } else { "not_ready" };
    let body = Brief {
        detail,
        ..brief(status, call.shared.version)
    };
    Ok(with_status(dto::ok(&body), ready))
}

/// Every part by itself
#[utoipa::path(get, path = "/health/detailed", tag = "health", responses(
    (status = 200, description = "Healthy, or degraded", body = Detailed),
    (status = 503, description = "An essential part is away", body = Detailed),
))]
async fn detailed(call: Call) -> Answer {
    let health = call.shared.engine.health().await;
    let components = (call.shared.components)();
    let status = status(&health, &components);
    let body = describe(
        status,
        call.shared.version,
        call.shared.listening,
        health,
        components,
    );
    Ok(with_status(dto::ok(&body), status != "unhealthy"))
}

fn brief(status: &'static str, version: &'static str) -> Brief {
    Brief {
        status,
        service: SERVICE,
        version,
        detail: None,
    }
}

/// What is wrong with the parts that every request needs; `None` when nothing is.
fn missing(health: &Health, components: &[Component]) -> Option<String> {
    let database = health.database.as_ref().err().cloned();
    let others = components.iter().filter(|c| c.essential && !c.healthy);
    let others = others.map(|part| match &part.detail {
        Some(detail) => format!("{}: {detail}", part.name),
        None => format!("{} is away", part.name),
    });
    let all: Vec<String> = database.into_iter().chain(others).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// `unhealthy` without what every request needs, `degraded` without what only some do.
fn status(health: &Health, components: &[Component]) -> &'static str {
    if missing(health, components).is_some() {
        "unhealthy"
    } else if health.objects.is_err() || components.iter().any(|c| !c.healthy) {
        "degraded"
    } else {
        "healthy"
    }
}

fn with_status(mut response: Response, ok: bool) -> Response {
    if !ok {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn describe(
    status: &'static str,
    version: &'static str,
    http: SocketAddr,
    health: Health,
    parts: Vec<Component>,
) -> Detailed {
    let own = [("database", health.database), ("storage", health.objects)];
    let own = own.map(|(name, state)| (name, State::new(state.is_ok(), state.err(), None)));
    let mut listening: BTreeMap<_, _> = parts
        .iter()
        .filter_map(|part| Some((part.name, part.address?)))
        .collect();
    listening.insert("http", http);
    let parts = parts.into_iter().map(|part| {
        (
            part.name,
            State::new(part.healthy, part.detail, part.address),
        )
    });
    let mut counters: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (name, label, value) in health.counters {
        counters.entry(name).or_default().insert(label, value);
    }
    Detailed {
        status,
        service: SERVICE,
        version,
        components: own.into_iter().chain(parts).collect(),
        listening,
        replicas: health.replicas.map(|standing| Replicas {
            live: standing.live,
            this: standing.here.0,
            leader: standing.leader.0,
        }),
        uplinks_waiting: health.uplinks_waiting,
        counters,
    }
}

impl State {
    fn new(healthy: bool, detail: Option<String>, address: Option<SocketAddr>) -> Self {
        Self {
            status: if healthy { "healthy" } else { "unhealthy" },
            detail,
            address,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_engine::Standing;
    use device_ota_engine::ports::ReplicaKey;

    use super::*;

    fn health(database: Result<(), String>) -> Health {
        let counters = vec![
            ("mqtt_refused", "password", 2),
            ("mqtt_refused", "topic", 1),
        ];
        Health {
            database,
            objects: Ok(()),
            replicas: Some(Standing {
                live: 2,
                here: ReplicaKey(7),
                leader: ReplicaKey(5),
            }),
            uplinks_waiting: 3,
            counters,
        }
    }

    fn gateway(healthy: bool) -> Component {
        let address = Some("127.0.0.1:1883".parse().unwrap());
        Component {
            name: "mqtt_gateway",
            healthy,
            essential: false,
            detail: None,
            address,
        }
    }

    #[test]
    fn the_detailed_answer_shows_every_part_and_where_it_listens() {
        let body = describe(
            "healthy",
            "0.1.0",
            "127.0.0.1:8216".parse().unwrap(),
            health(Ok(())),
            vec![gateway(true)],
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap(), @r#"
        {
          "status": "healthy",
          "service": "ota_service",
          "version": "0.1.0",
          "components": {
            "database": {
              "status": "healthy"
            },
            "mqtt_gateway": {
              "status": "healthy",
              "address": "127.0.0.1:1883"
            },
            "storage": {
              "status": "healthy"
            }
          },
          "listening": {
            "http": "127.0.0.1:8216",
            "mqtt_gateway": "127.0.0.1:1883"
          },
          "replicas": {
            "live": 2,
            "this": 7,
            "leader": 5
          },
          "uplinks_waiting": 3,
          "counters": {
            "mqtt_refused": {
              "password": 2,
              "topic": 1
            }
          }
        }
        "#);
    }

    #[test]
    fn a_part_that_is_down_degrades_and_a_database_that_is_down_ends() {
        assert_eq!(status(&health(Ok(())), &[gateway(true)]), "healthy");
        assert_eq!(status(&health(Ok(())), &[gateway(false)]), "degraded");
        assert_eq!(
            status(
                &health(Ok(())),
                &[Component {
                    essential: true,
                    ..gateway(false)
                }]
            ),
            "unhealthy"
        );
        assert_eq!(status(&health(Err("gone".to_owned())), &[]), "unhealthy");
        let link = Component {
            name: "mqtt_link",
            essential: true,
            ..gateway(false)
        };
        assert_eq!(
            missing(&health(Err("the database is full".to_owned())), &[link]).as_deref(),
            Some("the database is full; mqtt_link is away")
        );
    }
}
