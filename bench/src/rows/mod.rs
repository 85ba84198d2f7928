//! One file a row of figures.

mod bare;
pub(crate) mod brokers;
pub(crate) mod campaign;
pub(crate) mod connections;
pub(crate) mod fan_out;
pub(crate) mod heartbeats;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod latencies;
pub(crate) mod named;
pub(crate) mod progress_reads;
pub(crate) mod recovery;
pub(crate) mod replicas;
pub(crate) mod start;
pub(crate) mod statistics;
pub(crate) mod stop;
mod stream;
pub(crate) mod upload;

/// The load generator's own thread: everything that it does happens there.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
