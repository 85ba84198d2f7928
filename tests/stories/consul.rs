//! Consul: the service is there while it runs, with a check that Consul can make, also when Consul came later or forgot it, and
//! is not there any more afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Admin, Asked, Neighbour, Options, Says, Service, eventually};

matrix!(the_service_is_in_consul_while_it_runs: sqlite_gateway, postgres_gateway);
matrix!(consul_that_is_away_delays_nothing: sqlite_gateway);

const TOKEN: &str = "b1gs33cr3t";
/// Longest that an end may take (README).
const END_WITHIN: Duration = Duration::from_secs(5);

/// A Consul agent's registry, as its HTTP API shows it to whoever has the token.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<BTreeMap<String, Value>>>);

impl Registry {
    fn answer(&self, asked: &Asked) -> Says {
        if asked.headers.get("x-consul-token").map(String::as_str) != Some(TOKEN) {
            return Says::Text(403, "Permission denied".to_owned());
        }
        let mut entries = self.0.lock().unwrap();
        let path = asked.path.strip_prefix("/v1/agent/service/").unwrap();
        match (asked.method.as_str(), path) {
            ("PUT", "register?replace-existing-checks=true") => {
                let id = asked.body["ID"].as_str().unwrap().to_owned();
                entries.insert(id, asked.body.clone());
                Says::Text(200, String::new())
            }
            ("PUT", path) => {
                let id = path.strip_prefix("deregister/").unwrap();
                match entries.remove(id) {
                    Some(_) => Says::Text(200, String::new()),
                    None => Says::Text(404, format!("Unknown service ID {id:?}")),
                }
            }
            ("GET", id) => match entries.get(id) {
                Some(entry) => Says::Json(200, entry.clone()),
                None => Says::Text(404, format!("unknown service ID: {id}")),
            },
            (method, path) => panic!("{method} {path}"),
        }
    }

    async fn agent(&self) -> Neighbour {
        let registry = self.clone();
        Neighbour::start(move |asked| registry.answer(asked)).await
    }

    /// All entries, once there is one.
    async fn entries(&self) -> Vec<Value> {
        eventually("the service is in Consul", async || {
            let entries: Vec<Value> = self.0.lock().unwrap().values().cloned().collect();
            (!entries.is_empty())
                .then_some(entries)
                .ok_or(String::new())
        })
        .await
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

/// Waits until health says so of Consul.
async fn is_told(admin: &Admin, status: &str) -> String {
    eventually("health tells how Consul is", async || {
        let health = admin.health().await;
        let consul = &health["components"]["consul"];
        let detail = consul["detail"].as_str().unwrap_or_default().to_owned();
        let is_so = consul["status"] == status && !detail.ends_with("being registered");
        is_so.then_some(detail).ok_or(health.to_string())
    })
    .await
}

async fn the_service_is_in_consul_while_it_runs(options: Options) {
    let registry = Registry::default();
    let agent = registry.agent().await;
    let options = options
        .with("CONSUL_URL", agent.url())
        .with("CONSUL_TOKEN", TOKEN);
    let mut service = Service::start(options.clone()).await;
    let entries = registry.entries().await;
    let http = service.ready().http.clone();
    let port: u16 = http.rsplit_once(':').unwrap().1.parse().unwrap();
    let id = format!("ota_service-127.0.0.1-{port}");
    let entry = json!({
        "ID": id, "Name": "ota_service", "Address": "127.0.0.1", "Port": port, "Tags": ["ota", "v1"],
        "Meta": {"version": env!("CARGO_PKG_VERSION")},
        "Check": {
            "Name": "ready", "HTTP": format!("http://{http}/health/ready"), "Method": "GET", "Interval": "10s",
            "Timeout": "5s", "DeregisterCriticalServiceAfter": "10m",
        },
    });
    assert_eq!(entries, std::slice::from_ref(&entry));
    // As Consul does.
    let admin = service.admin();
    let check = admin.client().get(entry["Check"]["HTTP"].as_str().unwrap());
    assert_eq!(check.send().await.unwrap().status(), 200);
    let detail = is_told(&admin, "healthy").await;
    assert!(
        detail.starts_with(&format!("{id}: registered since 20")),
        "{detail}"
    );

    // An agent that was started anew knows nobody.
    registry.forget();
    assert_eq!(registry.entries().await, std::slice::from_ref(&entry));

    service.stop().await;
    assert!(registry.is_empty(), "it has gone in order");

    // A kill leaves its entry, which the next start takes over.
    service.start_again().await;
    registry.entries().await;
    service.kill();
    assert!(!registry.is_empty());
    let elsewhere = "http://ota.example.com:8443";
    service.reconfigure(options.clone().with("CONSUL_ADVERTISE_URL", elsewhere));
    service.start_again().await;
    let known = eventually("both are there", async || {
        let entries = registry.entries().await;
        (entries.len() == 2).then_some(entries).ok_or(String::new())
    })
    .await;
    let check = "http://ota.example.com:8443/health/ready";
    assert_eq!(known[1]["Address"], "ota.example.com");
    assert_eq!(known[1]["Check"]["HTTP"], check);
    service.stop().await;
    service.reconfigure(options);
    service.start_again().await;
    is_told(&admin, "healthy").await;
    assert_eq!(registry.entries().await, [entry]);
    service.stop().await;
    assert!(registry.is_empty());
}

async fn consul_that_is_away_delays_nothing(options: Options) {
    let registry = Registry::default();
    let mut agent = registry.agent().await;
    agent.stop().await;
    let options = options
        .with("CONSUL_URL", agent.url())
        .with("CONSUL_TOKEN", TOKEN);
    let mut service = Service::start(options.clone()).await;
    let admin = service.admin();
    let detail = is_told(&admin, "unhealthy").await;
    assert!(detail.contains(": not registered since 20"), "{detail}");
    assert_eq!(admin.health().await["status"], "degraded");
    admin.get("/health/ready").await.expect(200);
    admin.image("2.1.0").await;
    agent.start_again().await;
    registry.entries().await;
    is_told(&admin, "healthy").await;

    // It hangs, and the service goes all the same.
    agent.thinks(|_| Says::Nothing);
    let asked = Instant::now();
    service.signal(Signal::SIGTERM);
    let status = service.ended().await;
    assert!(status.success(), "ended with {status}");
    assert!(asked.elapsed() < END_WITHIN, "took {:?}", asked.elapsed());
    assert!(!registry.is_empty());

    // Something else is there that says yes to everything; then it is Consul again.
    agent.thinks(|_| Says::Text(200, "<html>Please log in</html>".to_owned()));
    service.start_again().await;
    let detail = is_told(&admin, "unhealthy").await;
    assert!(
        detail.contains(": not registered, answers oddly since 20"),
        "{detail}"
    );
    let known = registry.clone();
    agent.thinks(move |asked| known.answer(asked));
    is_told(&admin, "healthy").await;
    service.stop().await;

    // It talks nonsense, then does not know the token.
    agent.thinks(|_| Says::Text(418, "teapot".to_owned()));
    service.start_again().await;
    let detail = is_told(&admin, "unhealthy").await;
    assert!(detail.contains("it answered 418"), "{detail}");
    service.stop().await;
    let known = registry.clone();
    agent.thinks(move |asked| known.answer(asked));
    service.reconfigure(options.with("CONSUL_TOKEN", "another"));
    service.start_again().await;
    let detail = is_told(&admin, "unhealthy").await;
    assert!(
        detail.contains("CONSUL_TOKEN may not do this") && !detail.contains("another"),
        "{detail}"
    );
    service.stop().await;
}
