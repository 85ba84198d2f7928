//! The first screen: what a person needs to know after a start, and one line for programs.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use crate::edge::Listening;

/// What came to be at this start.
pub(crate) struct Started<'s> {
    /// Admin API.
    pub http: SocketAddr,
    /// What it speaks: `http` or `https`.
    pub scheme: &'static str,
    /// Calls from within the house; `None`: off.
    pub internal: Option<SocketAddr>,
    /// Devices connect here; nowhere with an external broker.
    pub mqtt: Listening,
    /// The external broker, without its password.
    pub broker: Option<String>,
    /// In-house subscribers connect here.
    pub bus: Option<SocketAddr>,
    /// The database, for people.
    pub database: String,
    /// The admin key's file.
    pub admin_key: &'s Path,
    /// Keys were made by the service itself.
    pub development: bool,
    /// What does not suffice.
    pub warning: Option<String>,
}

/// Says it on the standard output. A closed output is no reason not to serve.
pub(crate) fn show(started: &Started<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text(started).as_bytes());
    if !out.is_terminal() {
        let _ = writeln!(out, "ready {}", for_programs(started));
    }
    let _ = out.flush();
}

fn for_programs(started: &Started<'_>) -> serde_json::Value {
    json!({
        "http": started.http.to_string(),
        "scheme": started.scheme,
        "internal": started.internal.map(|addr| addr.to_string()),
        "mqtt": started.mqtt.plain.map(|addr| addr.to_string()),
        "mqtt_tls": started.mqtt.tls.map(|addr| addr.to_string()),
        "bus": started.bus.map(|addr| addr.to_string()),
        "admin_key_file": started.admin_key,
    })
}

fn text(started: &Started<'_>) -> String {
    let http = format!("{}://{}", started.scheme, started.http);
    let plain = started.mqtt.plain.map(|addr| format!("mqtt://{addr}"));
    let tls = started.mqtt.tls.map(|addr| format!("mqtts://{addr}"));
    let gateway: Vec<_> = tls.iter().chain(&plain).map(String::as_str).collect();
    let devices = match &started.broker {
        None => format!("{} (embedded gateway)", gateway.join(", ")),
        // Where this service connects; devices have a listener of their own there.
        Some(broker) => format!("at the external broker; this service connects to {broker}"),
    };
    let bus = started.bus.map_or_else(
        || "off".to_owned(),
        |addr| format!("mqtt://{addr} (events, loopback only)"),
    );
    let key = started.admin_key.display();
    let mode = if started.development {
        " · DEVELOPMENT MODE"
    } else {
        ""
    };
    let internal = started
        .internal
        .map(|addr| format!("  internal    http://{addr} (X-Internal-Call, loopback only)\n"))
        .unwrap_or_default();
    let mut text = format!(
        "device-ota {version}{mode}\n\n  admin API   {http}\n  devices     {devices}\n  bus         {bus}\n  database    {}\n  admin key   {key}\n{internal}\n",
        started.database,
        version = env!("CARGO_PKG_VERSION"),
    );
    if started.development {
        text.push_str(
            "  This service made its own signing keys, all of them on this machine. That is for trying it out;\n  in production keep the root and release keys elsewhere (TRUST_ROOT, DISPATCH_KEY).\n\n",
        );
    }
    if let Some(warning) = &started.warning {
        let _ = writeln!(text, "  WARNING: {warning}\n");
    }
    // Over TLS somebody has to say whom to trust; the listener without it, where there is one, needs nothing.
    let mqtt = started.mqtt.plain.map(|addr| addr.to_string());
    let mqtt = mqtt.or(tls).map(|addr| format!(" --mqtt {addr}"));
    let mqtt = mqtt.unwrap_or_default();
    let _ = writeln!(
        text,
        "  Next:
    export KEY=$(cat {key})
    curl -H \"X-API-Key: $KEY\" {http}/api/v1/ota/campaigns
    cargo run --release --bin device-sim -- --http {http}{mqtt} --admin-key-file {key} --devices 500
" // writing to a String cannot fail
    );
    text
}
