//! The cloud's edge: one small trait, the SDK behind it, and signing for what the SDK has no call for.

pub mod api;
