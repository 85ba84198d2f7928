//! A `PostgreSQL` server for the run, which waits for its disk as a real one does: the one that
//! `DEVICE_OTA_TEST_POSTGRES_URL` names, or a private one.

use std::str::FromStr as _;

use device_ota_store::testing::{Durability, POSTGRES_URL_VARIABLE, PrivateServer};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::fleet::Database;

/// A server and the databases that this run made on it.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    // Ends with this value.
    private: Option<PrivateServer>,
    made: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        match std::env::var(POSTGRES_URL_VARIABLE) {
            Ok(url) if !url.is_empty() => Self {
                url,
                private: None,
                made: Vec::new(),
            },
            _ => {
                let server = PrivateServer::start(Durability::On);
                Self {
                    url: server.url().to_owned(),
                    private: Some(server),
                    made: Vec::new(),
                }
            }
        }
    }

    /// A new, empty database.
    pub(crate) async fn database(&mut self, purpose: &str) -> anyhow::Result<Database> {
        let name = format!("ota_bench_{}_{purpose}", std::process::id());
        self.command(format!("CREATE DATABASE {name}")).await?;
        let url = PgConnectOptions::from_str(&self.url)?
            .database(&name)
            .to_url_lossy()
            .to_string();
        self.made.push(name);
        Ok(Database::Postgres(url))
    }

    async fn command(&self, sql: String) -> anyhow::Result<()> {
        let mut admin = PgConnectOptions::from_str(&self.url)?.connect().await?;
        // The text is made of constants and a process id.
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut admin)
            .await?;
        admin.close().await?;
        Ok(())
    }

    /// Removes what this run made on a server that outlives it.
    pub(crate) async fn clean_up(mut self) -> anyhow::Result<()> {
        if self.private.is_none() {
            for name in std::mem::take(&mut self.made) {
                self.command(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
                    .await?;
            }
        }
        Ok(())
    }
}
