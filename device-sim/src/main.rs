//! `device-sim`: runs a fleet of simulated devices against the service. See `device-sim --help`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use device_sim::cli::Cli;
use device_sim::fleet::{Fleet, Observer, Unwatched};
use device_sim::report;
use device_sim::scenario::Scenario;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit status when the fleet could not be run at all.
const COULD_NOT_RUN: u8 = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_env("DEVICE_SIM_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(io::stderr(), "device-sim: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn run() -> anyhow::Result<u8> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return Ok(if error.use_stderr() { COULD_NOT_RUN } else { 0 });
        }
    };
    let (json, quiet) = (cli.json(), cli.quiet());
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.cancel();
        }
    });
    let mut observer: Box<dyn Observer> = if quiet {
        Box::new(Unwatched)
    } else {
        report::progress()
    };
    if let Some(asked) = cli.scenario() {
        let scenario = Scenario::read(asked.file())?;
        let service = asked.service()?;
        let outcome = scenario.play(&service, observer.as_mut(), stop).await?;
        drop(observer);
        print(&outcome, json)?;
        return Ok(outcome.exit_code());
    }
    let summary = Fleet::run(cli.into_config()?, observer.as_mut(), stop).await?;
    drop(observer);
    print(&summary, json)?;
    Ok(summary.exit_code())
}

fn print<T: std::fmt::Display + serde::Serialize>(what: &T, json: bool) -> anyhow::Result<()> {
    let said = if json {
        serde_json::to_string_pretty(what)?
    } else {
        what.to_string()
    };
    match writeln!(io::stdout(), "{said}") {
        // Who asked has read enough: the exit status tells the rest.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
