//! `device-ota`: the composition root. Reads the configuration, puts the parts together, runs them until a signal,
//! and ends them in order. What the service does is in the crates; here is only who knows whom.

mod access;
mod admin;
mod api_keys;
mod cli;
mod config;
mod data_dir;
mod edge;
mod keys;
mod password_file;
mod screen;
mod serve;
mod shutdown;
mod system;
mod tasks;

use std::process::ExitCode;

use clap::Parser as _;

/// A report is allocated by the thread that reads it and freed by the one that has stored it (ADR 13).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device-ota: {error:#}");
            ExitCode::FAILURE
        }
    }
}
