//! `device-ota audit`: the audit trail on the database itself, for whoever may read it. The service may run meanwhile.

use clap::Subcommand;
use device_ota_engine::verify_audit;

use crate::config::Config;
use crate::serve;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Walk the whole chain of hashes: its number of records and its last hash, to write down; or the first record that is
    /// not as it was written, and exit status 1.
    Verify {
        /// A hash that was written down earlier; the chain must hold it.
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
    },
}

/// Does it.
pub(crate) fn run(config: &Config, command: &AuditCommand) -> anyhow::Result<()> {
    let AuditCommand::Verify { expect } = command;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (store, _) = serve::open_store(config).await?;
        let expect = expect.as_ref().map(|hash| hash.trim().to_ascii_lowercase());
        let head = verify_audit(&*store, expect.as_deref()).await?;
        println!("{} records, all as they were written", head.number);
        println!("{}", head.hash);
        Ok(())
    })
}
