//! What the audit trail keeps of each thing: what an act may change of it. Never a secret, a verifier or a signature.

use device_ota_domain::api_key::ApiKey;
use device_ota_domain::campaign::Named;
use device_ota_domain::device::Registration;
use device_ota_domain::permit::Permit;
use device_ota_domain::ring::{Ring, Shares};
use device_ota_domain::webhook::Webhook;
use device_ota_domain::{Campaign, Firmware, Update, UpdateState};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What an image is, and by which bytes it is known.
pub(crate) fn firmware(firmware: &Firmware) -> Value {
    let metadata = &firmware.metadata;
    json!({
        "name": metadata.name, "version": metadata.version, "device_model": metadata.device_model,
        "size": firmware.size, "sha256": firmware.sha256, "release_sha256": firmware.release_sha256,
        "is_beta": metadata.is_beta, "is_security_update": metadata.is_security_update,
        "security_version": metadata.security_version, "description": metadata.description,
        "release_notes": metadata.release_notes, "min_battery_percent": metadata.min_battery_percent,
        "min_free_storage_bytes": metadata.min_free_storage_bytes, "deprecated_at": firmware.deprecated_at,
    })
}

/// What a campaign shall do, and how far it is.
pub(crate) fn campaign(campaign: &Campaign) -> Value {
    campaign_at(campaign, campaign.revision)
}

/// The same of one that has just been saved, which has raised its revision.
pub(crate) fn saved_campaign(campaign: &Campaign) -> Value {
    campaign_at(campaign, campaign.revision + 1)
}

fn campaign_at(campaign: &Campaign, revision: i64) -> Value {
    let mut facts = json!({
        "status": campaign.state.status(), "state": campaign.state, "approval": campaign.approval,
        "target_count": campaign.target_count, "revision": revision, "deleted_at": campaign.deleted_at,
    });
    if let (Value::Object(facts), Ok(Value::Object(spec))) =
        (&mut facts, serde_json::to_value(&campaign.spec))
    {
        facts.extend(spec);
    }
    facts
}

/// Adds whom a campaign names to what there is of it.
pub(crate) fn naming(campaign: &mut Value, named: &Named) {
    if !named.is_empty()
        && let Value::Object(facts) = campaign
    {
        facts.insert("named".to_owned(), json!(named));
    }
}

/// What a permit permits, to whom.
pub(crate) fn permit(permit: &Permit) -> Value {
    json!({
        "device_id": permit.device, "campaign_id": permit.campaign, "from_sha256": permit.from_sha256,
        "to_sha256": permit.to_sha256, "expires_at": permit.expires_at,
    })
}

/// Whose an update is, and where it stands.
pub(crate) fn update(update: &Update) -> Value {
    let asked_to_stop = matches!(
        update.state,
        UpdateState::InFlight {
            cancel_requested: true,
            ..
        }
    );
    json!({
        "device_id": update.device_id, "campaign_id": update.campaign, "firmware_id": update.firmware,
        "from_version": update.from_version, "to_version": update.to_version, "priority": update.priority,
        "attempt": update.attempt, "retries": update.retries, "give_up_at": update.give_up_at, "status": update.status(),
        "cancel_requested": asked_to_stop,
    })
}

/// The same of a rollback that somebody asked for, and why.
pub(crate) fn rollback(rollback: &Update, reason: &str) -> Value {
    let mut facts = update(rollback);
    if let Value::Object(facts) = &mut facts {
        facts.insert("reason".to_owned(), reason.into());
    }
    facts
}

/// What is registered of a device.
pub(crate) fn device(said: &Registration) -> Value {
    json!({
        "device_type": said.device_type, "device_model": said.device_model, "manufacturer": said.manufacturer,
        "hw_revision": said.hw_revision, "firmware_version": said.firmware_version, "groups": said.groups,
        "tags": said.tags, "ring": said.ring,
    })
}

/// How much of a fleet each ring takes.
pub(crate) fn rings(shares: Shares) -> Value {
    let percents = Ring::ALL.map(|ring| (ring.name().to_owned(), shares.percent(ring).into()));
    Value::Object(percents.into_iter().collect())
}

/// Who may use a key for what.
pub(crate) fn key(key: &ApiKey) -> Value {
    json!({
        "name": key.name, "subject": key.subject, "roles": key.roles, "expires_at": key.expires_at,
    })
}

/// Who is told of what. The path of an address may be a secret of its receiver, so of the whole there is only the hash: it
/// tells whether two addresses were the same.
pub(crate) fn webhook(webhook: &Webhook) -> Value {
    json!({
        "origin": origin(&webhook.url), "url_sha256": hex::encode(Sha256::digest(&webhook.url)),
        "event_types": webhook.event_types, "campaign_id": webhook.campaign, "status": webhook.status.name(),
    })
}

/// `https://host:port` of an address; nothing where that is not plain to see.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '\\', '?', '#']).next()?;
    (!host.contains('@')).then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_holds_nothing_that_may_be_a_secret() {
        for (url, shown) in [
            (
                "https://hooks.example.com/T0/secret",
                Some("https://hooks.example.com"),
            ),
            ("http://[::1]:8080?token=secret", Some("http://[::1]:8080")),
            ("https:\\\\host\\secret", None),
            ("https://user:secret@host/", None),
            ("https:host/secret", None),
        ] {
            assert_eq!(origin(url).as_deref(), shown, "{url}");
        }
    }
}
