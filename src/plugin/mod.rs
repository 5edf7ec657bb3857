//! The stock `session-manager-plugin`: found, started in a clean environment, listened to, stopped and reaped.
