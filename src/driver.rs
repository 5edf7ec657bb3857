//! A task per tunnel: events in, actions out.
