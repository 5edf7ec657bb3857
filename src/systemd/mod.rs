//! What systemd gives and wants: units, readiness, the watchdog, the fd store.

pub mod fdstore;
pub mod generator;
pub mod notify;
