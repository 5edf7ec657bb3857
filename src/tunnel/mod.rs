//! The core: pure, and the only place that decides.
//!
//! A [`Tunnel`] knows no socket, no clock and no AWS. It is told what happened ([`Event`]) and when, and says what to
//! do ([`Action`]); the driver performs that and tells what came of it. Every event about a session carries the
//! session's [`Generation`]; one about a session that is over changes nothing.
//!
//! A tunnel has a number of *slots*, each of which wants one session that serves it:
//!
//! | the slot's session | and its successor | what the slot does |
//! |---|---|---|
//! | none | none | begins a successor at once, or when its [clock](backoff) says so |
//! | Ready | none | serves |
//! | Ready, data channel down | none | waits for the gateway to resume it; after `failover_after` begins a successor |
//! | Ready, stalled by a client that does not read | none | begins a successor, unless there are three already for that reason |
//! | Ready, to be replaced (rotation, changed settings, destination to be resolved anew) | none | begins a successor |
//! | Ready | Starting, Opening | goes on serving; if it had only been interrupted or stalled and is back, the successor is given up |
//! | Ready | Ready | the successor serves, the other one is Retired |
//! | none, down or stalled | none, but a Retired one that was only interrupted or stalled is well again | that one serves again |
//!
//! A Retired session lives until its last connection is closed: one that was replaced on purpose for `drain` at the
//! most, one that was interrupted or stalled, replaced for the account's limit or for the destination's sake as long as it
//! is up, and `resume_for` while it is down.
//!
//! New connections go to sessions that flow. A stalled one takes them only where there is no other, and none to be had
//! soon: while its successor is being built, clients are held.
//!
//! [`session`] has the states of one session, [`ending`] how they end, [`command`] what an operator can ask, [`health`]
//! what is believed of the destination, [`rotation`] when a session is too old.

mod backoff;
pub mod command;
mod ending;
pub mod failure;
pub mod health;
mod machine;
pub mod rotation;
mod session;
mod settle;
pub mod status;
pub mod step;
mod verdict;
#[cfg(test)]
mod walk;

use std::time::Duration;

pub use machine::Tunnel;

use command::Command;
use failure::Failure;
use health::{Found, Probing};
use rotation::{Limit, Rotate};

/// Time since the tunnel began. The core never reads a clock.
pub type Time = Duration;

/// Numbers the sessions of one tunnel in the order in which they were begun. Every asynchronous result carries
/// the generation it belongs to, so that a late one can be told from a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// What the core needs of a tunnel's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Slots, at least 1.
    pub sessions: usize,
    /// Data channel down for this long: a replacement is begun.
    pub failover_after: Duration,
    /// Data channel down for this long: the session is given up.
    pub resume_for: Duration,
    /// How long connections of a session that was replaced on purpose may go on.
    pub drain: Duration,
    /// The age at which a session is replaced.
    pub rotate: Rotate,
    /// How the destination is probed.
    pub probing: Option<Probing>,
}

/// What keeps a session that is up from serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptionCause {
    /// The data channel is closed and being opened again.
    Closed,
    /// The service answers nothing on it.
    Unanswered,
    /// The service says that the agent has lost its connection.
    AgentAway,
    /// The agent acknowledges nothing.
    AgentSilent,
    /// Messages are missing, and what comes behind them waits.
    Gap,
}

/// Why a session that works is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It has reached the age at which sessions are rotated.
    Age,
    /// The configuration has changed.
    Configuration,
    /// The destination's name has to be resolved anew: the agent does that once in a session's life.
    Destination,
    /// Connections can no longer be matched to mux streams.
    ForeignConnection,
    /// Somebody has asked for it.
    Requested,
    /// A client that does not read holds up the others.
    Stalled,
    /// Its probes get no answer, and nothing shows that its agent is there.
    Unanswered,
    /// Its plugin does not acknowledge what the agent sends again: with one more loss nothing comes from the agent any more.
    Unheeded,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Something about one session.
    Session(Generation, SessionEvent),
    /// The configuration has changed; `renew`: in something that only a new session can take on.
    Configure {
        /// From now on.
        settings: Settings,
        /// Replace the sessions.
        renew: bool,
    },
    /// Somebody asks for something.
    Command(Command),
    /// The answer to [`Action::AskLimit`]: the account's maximum session duration.
    Limit(Limit),
    /// Stop: open connections may go on for `grace`.
    Stop {
        /// At most 10 s for a stop that ends within 14 s.
        grace: Duration,
    },
    /// Stop at once; what cannot be terminated is left to the record.
    StopNow,
    /// There is a target now that may be connected: whoever waits for one need not wait longer.
    TargetOnline,
    /// The deadline has come.
    Tick,
}

/// What happened to one session.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEvent {
    /// StartSession answered, and the session is recorded.
    Started,
    /// StartSession failed, or could not be called.
    StartFailed(Failure),
    /// The plugin could not be launched. Like [`Self::PluginExited`] it ends what [`Action::Launch`] began.
    LaunchFailed(Failure),
    /// The plugin's port is open.
    Opened,
    /// The agent has named the kind of session.
    Kind(String),
    /// The plugin is gone. Exactly one of these, or of [`Self::LaunchFailed`], follows each [`Action::Launch`].
    PluginExited {
        /// Its last words.
        words: String,
        /// Somebody has killed it: it says nothing of the next one.
        killed: bool,
    },
    /// The plugin does nothing any more.
    PluginHung {
        /// What was seen.
        reason: String,
    },
    /// The data channel could not be opened; the gateway goes on trying.
    NotOpened(Failure),
    /// The data channel does not serve; the gateway resumes it, or waits for it. Told again when that is for another cause.
    Interrupted {
        /// What kind of interruption it is.
        cause: InterruptionCause,
        /// In words: close code and reason, the error, or what was seen.
        reason: String,
        /// How long it had lasted when it was noticed.
        lasted: Duration,
    },
    /// The data channel serves again.
    ChannelResumed {
        /// How many attempts it took to open it; none where it was open all along.
        attempts: u32,
    },
    /// The session is gone at the service.
    Ended {
        /// In the words of whoever says so.
        reason: String,
        /// The service itself has declared it over, instead of not knowing it any more or sending what cannot be read.
        declared: bool,
    },
    /// The agent could not reach the destination for a new connection.
    DestinationFailed,
    /// A new connection has had its first byte from the destination. Told once after each failure, at the least.
    Answered,
    /// What a probe has found. Exactly one of these follows each [`Action::Probe`], unless the session ends.
    Probed(Found),
    /// Somebody else has connected to the plugin's port.
    ForeignConnection,
    /// The plugin does not acknowledge what the agent sends again.
    Unheeded,
    /// So many connections are open on it now.
    Connections(usize),
    /// A client of it does not read, and as much is kept for it as may be: the plugin will soon be able to give nothing to
    /// the others either.
    Stalled,
    /// There is room again for everything that comes from the plugin.
    Flows,
    /// TerminateSession answered.
    Terminated(Result<(), Failure>),
}

/// What is to be done. Actions are performed in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Choose a target and call StartSession.
    Start(Generation),
    /// Open a gateway for the session and launch the plugin.
    Launch(Generation),
    /// These sessions take new connections from now on; with none of them clients are held.
    Route(Vec<Generation>),
    /// Probe the destination through the session.
    Probe(Generation),
    /// Ask for the account's maximum session duration.
    AskLimit,
    /// Cut the session's open connections.
    Cut(Generation),
    /// Stop the plugin: politely, then not.
    StopPlugin(Generation),
    /// Kill the plugin.
    KillPlugin(Generation),
    /// Call TerminateSession.
    Terminate(Generation),
    /// The session is over, here and at the service: drop what belongs to it, its record too.
    Forget(Generation),
    /// The session could not be terminated: drop what belongs to it but leave its record to the next process.
    LeaveRecorded(Generation),
    /// Tell the operator.
    Report(Report),
    /// Nothing is left; this is the last action.
    Stopped,
}

/// What an operator would want to know of what was decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A session serves: how long StartSession, plugin and handshake took.
    Ready(Generation, Duration),
    /// The data channel does not serve: the kind of interruption, and in words.
    Interrupted(Generation, InterruptionCause, String),
    /// The data channel is back: how long it was down, and how many attempts it took.
    Resumed(Generation, Duration, u32),
    /// Down for `failover_after`: a replacement is begun.
    FailingOver(Generation, Duration),
    /// A session that works is to be replaced.
    Replacing(Generation, Reason),
    /// A session takes no new connections; so many are open.
    Retired(Generation, usize),
    /// A replaced session serves again.
    ServesAgain(Generation),
    /// A client does not read, so that a session with so many open connections is about to stand still; whether another
    /// one may be started for it.
    Stalled(Generation, usize, bool),
    /// It stands still no more, after this time.
    Flows(Generation, Duration),
    /// The destination is down, in these words, as seen through this session; the tunnel stays up.
    Degraded(Generation, String),
    /// The destination can be reached again; it could not for so long.
    Recovered(Generation, Duration),
    /// The account ends sessions at this age.
    Limit(Duration),
    /// This was no limit, or is none any more.
    NoLimit(Duration),
    /// A session is over.
    Ended {
        /// Which.
        generation: Generation,
        /// Why.
        reason: String,
        /// Since it was begun.
        age: Duration,
        /// Connections that were cut with it.
        cut: usize,
        /// Whether that was meant to happen.
        expected: bool,
    },
    /// A session could not be had; the next attempt is made after this time.
    Failed(Generation, Failure, Duration),
    /// A session could not be terminated and is left to the record.
    NotTerminated(Generation, String),
}
