//! autossm keeps AWS SSM Session Manager port-forwarding tunnels up for months.
//!
//! `ARCHITECTURE.md` explains the whole; the short form is one picture:
//!
//! ```text
//! client ──► proxy ──► session-manager-plugin ──► gateway ──► AWS Session Manager ──► agent ──► destination
//!              ▲            │ stdout                │
//!              └─ tunnel (pure state machine) ◄─────┘ events
//! ```
//!
//! Imports point down only: `cli` → `driver` → (`aws`, `plugin`, `gateway`, `proxy`, `probe`, `control`, `systemd`,
//! `hook`) → `network`,
//! `tunnel`, `config`. Log lines are `telemetry`'s business.

pub mod aws;
pub mod cli;
pub mod config;
pub mod control;
pub mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod hook;
pub mod network;
pub mod plugin;
pub mod probe;
pub mod proxy;
mod socket_file;
pub mod systemd;
pub mod telemetry;
pub mod tunnel;
pub mod web;
