//! `device-ota`: the composition root. Reads the configuration, puts the parts together, runs them until a signal,
//! and ends them in order. What the service does is in the crates; here is only who knows whom.

mod access;
mod admin;
mod api_keys;
mod audit;
mod check;
mod cli;
mod config;
mod data_dir;
mod edge;
mod health;
mod images;
mod keys;
mod open_files;
mod password_file;
mod permit;
mod places;
mod replica;
mod screen;
mod serve;
mod services;
mod shutdown;
mod system;
mod tasks;
mod tls;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

/// Connections come and go by the thousand, and reports are freed by another thread than the one that read them (ADR 13).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "device-ota: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for those that its text tells of already.
pub(crate) fn told(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .fold(error.to_string(), |told, cause| {
            let cause = cause.to_string();
            if told.contains(&cause) {
                told
            } else {
                format!("{told}: {cause}")
            }
        })
}
