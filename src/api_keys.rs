//! `device-ota keys`: API keys on the database itself, for whoever may read it. The data folder is left alone, so the
//! service may run; it notices a revoked key within seconds.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;
use device_ota_domain::api_key::{ApiKey, KeyDraft};
use device_ota_domain::audit::{Actor, Authentication};
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::{ApiKeyId, Role, Roles};
use device_ota_engine::{ApiKeys, Caller};
use jiff::Timestamp;

use crate::config::Config;
use crate::serve;
use crate::system::{SystemClock, SystemEntropy};

/// As records show who did it.
const SUBJECT: &str = "device-ota keys";

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print its secret, which is shown this once.
    Create {
        /// What it is for.
        #[arg(long)]
        name: String,
        /// Who uses it, as records show it [default: the name]
        #[arg(long)]
        subject: Option<String>,
        /// viewer, uploader, operator, approver or admin; may be repeated.
        #[arg(long = "role", required = true)]
        roles: Vec<Role>,
        /// When it ends, e.g. 2027-01-31T00:00:00Z [default: when it is revoked]
        #[arg(long)]
        expires_at: Option<Timestamp>,
    },
    /// List all keys, newest first.
    List,
    /// Revoke a key.
    Revoke {
        /// `key_…`, as the list shows it.
        key: ApiKeyId,
    },
}

/// Does it.
pub(crate) fn run(config: &Config, command: KeysCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (store, _) = serve::open_store(config).await?;
        let (keys, _uses) = ApiKeys::new(store, Arc::new(SystemClock), Arc::new(SystemEntropy));
        act(&keys, command).await
    })
}

async fn act(keys: &ApiKeys, command: KeysCommand) -> anyhow::Result<()> {
    let by = Caller::new(Actor {
        subject: SUBJECT.into(),
        roles: Roles::ADMIN,
        authentication: Authentication::CommandLine,
        request_id: "".into(),
        peer: None,
    });
    match command {
        KeysCommand::Create {
            name,
            subject,
            roles,
            expires_at,
        } => {
            let draft = KeyDraft {
                subject: subject.unwrap_or_else(|| name.clone()),
                name,
                roles: roles.into_iter().collect(),
                expires_at,
            };
            let (key, secret) = keys.create(draft, &by).await?;
            eprintln!("{}", line(&key));
            eprintln!("The secret is shown this once:");
            writeln!(stdout(), "{secret}")?;
        }
        KeysCommand::List => list(keys).await?,
        KeysCommand::Revoke { key } => {
            writeln!(stdout(), "{}", line(&keys.revoke(&key, &by).await?))?;
        }
    }
    Ok(())
}

async fn list(keys: &ApiKeys) -> anyhow::Result<()> {
    let mut page = Page::new(MAX_LIMIT, 0).context("a page of full length")?;
    loop {
        let some = keys.list(page).await?;
        for key in &some {
            writeln!(stdout(), "{}", line(key))?;
        }
        if some.is_empty() {
            return Ok(());
        }
        page.offset += page.limit;
    }
}

/// One key on one line.
fn line(key: &ApiKey) -> String {
    let mut line = format!(
        "{}  {}  as {}  roles {}  made {} by {}",
        key.id, key.name, key.subject, key.roles, key.created_at, key.created_by
    );
    for (what, at) in [
        ("last used", key.last_used_at),
        ("ends", key.expires_at),
        ("revoked", key.revoked_at),
    ] {
        if let Some(at) = at {
            // Writing to a String cannot fail.
            let _ = write!(line, "  {what} {at}");
        }
    }
    line
}
