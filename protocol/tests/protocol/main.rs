//! The protocol crate from outside: parsers against any bytes, envelopes against tampering, and
//! the agent through stories and random lives.

#![expect(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod envelopes;
mod faults;
mod harness;
mod offers;
mod parsers;
mod power_cuts;
mod properties;
mod stories;
