//! The whole program against the lab. `AUTOSSM_TEST_PLUGIN=/path/to/session-manager-plugin` runs all of it with the
//! stock plugin instead of the stand-in, `AUTOSSM_TEST_PLUGIN_LINE=1.2.835.0` with the stand-in of the new line.
//! `AUTOSSM_TEST_AGENT=/path/to/worker` takes a worker of the real agent instead of the lab's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is wrong"
)]

mod browser;
mod bulk;
mod bytes;
mod clients;
mod closes;
mod control;
mod cost;
mod credentials;
mod daemon;
mod doctor;
mod drill;
mod encrypted;
mod environment;
mod faults;
mod hooks;
mod hostile;
mod keepalive;
mod life;
mod lines;
mod middlebox;
mod misuse;
mod networks;
mod observe;
mod operator;
mod packaged;
mod page;
mod plugin;
mod pools;
mod probes;
mod rotation;
mod sample;
mod site;
mod systemd;
mod targets;
mod terminal;
mod tools;
mod truncation;
mod web;
mod why;
