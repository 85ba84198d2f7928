//! The device's own logic, as one state machine that does no I/O itself.
