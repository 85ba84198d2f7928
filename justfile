# What one does here every day; `just` lists it.

_list:
    @just --list --unsorted

# Start the service, with nothing to set up.
run *args:
    cargo run --release -- {{args}}

# A fleet against it: `just sim --devices 500 --seed 7`.
sim *args:
    cargo run --release --bin device-sim -- {{args}}

# Everything that has to pass.
test:
    ./test

# The inner loop: format, lints, tests on SQLite.
quick:
    ./test --quick

# One figure against its peer: `just bench heartbeats`; without a name, the list.
bench *args:
    cargo run --release -p device-ota-bench -- {{args}}

# Snapshots that changed, one by one.
review:
    cargo insta review
