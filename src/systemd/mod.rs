//! What systemd gives and wants: readiness, the watchdog, the fd store.

pub mod fdstore;
pub mod notify;
