//! What is done to a tunnel, as data: so that it can be printed, and repeated from a seed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault, Link, UpgradeFault};
use autossm_lab::load::Attempt;
use clap::ValueEnum as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::daemon::Daemon;

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub enum Step {
    /// The service closes every data channel, as it does every hour.
    Close,
    /// Every data channel's TCP connection is reset.
    Abort,
    /// The service ends every session.
    Terminate,
    /// A plugin gets this signal.
    Plugin(Signal),
    /// The service says something to one session's client that is no message.
    Garbage,
    /// The agent of one session does nothing for so long. Goes on in the background.
    HangAgent(Duration),
    /// A fault is in force for so long. Goes on in the background.
    Begin(Fault, Duration),
    /// Until all that was begun is over.
    Over,
    /// Nothing.
    Pause(Duration),
}

/// What steps leave behind for those who judge the clients.
#[derive(Default)]
pub struct Done {
    /// When the last fault that was begun ends.
    over: Option<Instant>,
    /// While the destination answered nobody.
    no_destination: Vec<(SystemTime, SystemTime)>,
}

/// A data channel that is down is soon open again, or is looked for in vain.
const OPEN: Duration = Duration::from_secs(30);

impl Step {
    /// Does it.
    pub async fn perform(&self, lab: &Arc<Lab>, daemon: &Daemon, done: &mut Done) {
        match *self {
            Self::Close => drop(open(|| lab.close_all(1000, "Bye")).await),
            Self::Abort => drop(open(|| lab.abort_all()).await),
            Self::Terminate => {
                lab.terminate_all("Session terminated by an administrator");
            }
            Self::Plugin(signal) => {
                // There is none while a session is being started.
                if open(|| usize::from(plugin(daemon).is_some())).await.is_some()
                    && let Some(plugin) = plugin(daemon)
                {
                    let _ = kill(plugin, signal);
                }
            }
            Self::Garbage => {
                if let Some(session) = lab.sessions().first() {
                    lab.say(session, Frame::binary(vec![0xff; 200]), 1).await;
                }
            }
            Self::HangAgent(time) => {
                if let Some(session) = lab.sessions().first().cloned() {
                    lab.hang_agent(&session, true);
                    done.lasts(time);
                    let lab = lab.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(time).await;
                        lab.hang_agent(&session, false);
                    });
                }
            }
            Self::Begin(fault, time) => {
                drop(lab.set_for(fault, time));
                done.lasts(time);
                if fault == Fault::DestinationRefused {
                    let now = SystemTime::now();
                    done.no_destination.push((now, now + time));
                }
            }
            Self::Over => done.over().await,
            Self::Pause(time) => tokio::time::sleep(time).await,
        }
    }

    /// How long what it begins goes on.
    pub fn lasts(&self) -> Duration {
        match *self {
            Self::HangAgent(time) | Self::Begin(_, time) => time,
            _ => Duration::ZERO,
        }
    }

    /// The fault that it puts in force.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Begin(fault, _) => Some(*fault),
            _ => None,
        }
    }
}

impl Done {
    /// Whether the destination answered nobody while this one was open, with some time for the news to come through.
    pub fn without_destination(&self, attempt: &Attempt) -> bool {
        self.is_without_destination(attempt.at, attempt.at + attempt.took)
    }

    /// The same of any time from one moment to another.
    pub fn is_without_destination(&self, begin: SystemTime, end: SystemTime) -> bool {
        let slack = Duration::from_millis(500);
        let mut times = self.no_destination.iter();
        times.any(|(from, to)| begin < *to + slack && end > *from)
    }

    fn lasts(&mut self, time: Duration) {
        self.over = self.over.max(Some(Instant::now() + time));
    }

    async fn over(&self) {
        if let Some(over) = self.over {
            tokio::time::sleep_until(over.into()).await;
        }
    }
}

/// A child that is a plugin by now: one that is stopped between fork and exec stops the daemon with it.
fn plugin(daemon: &Daemon) -> Option<Pid> {
    let program = crate::daemon::plugin();
    let name = program.file_name()?.to_str()?;
    daemon.plugins().into_iter().find(|pid| {
        let stat = Process::new(pid.as_raw()).and_then(|process| process.stat());
        // The kernel keeps 15 characters.
        stat.is_ok_and(|stat| !stat.comm.is_empty() && name.starts_with(&stat.comm))
    })
}

/// Waits until there is something to do it to.
async fn open(mut perform: impl FnMut() -> usize) -> Option<()> {
    let began = Instant::now();
    while perform() == 0 {
        if began.elapsed() > OPEN {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Some(())
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
        match self {
            Self::Close => f.write_str("data channels closed"),
            Self::Abort => f.write_str("data channels reset"),
            Self::Terminate => f.write_str("sessions terminated"),
            Self::Plugin(signal) => write!(f, "plugin {signal}"),
            Self::Garbage => f.write_str("garbage on a data channel"),
            Self::HangAgent(time) => write!(f, "an agent hangs for {}", seconds(time)),
            Self::Begin(fault, time) => write!(f, "{} for {}", words(fault), seconds(time)),
            Self::Over => f.write_str("until that is over"),
            Self::Pause(time) => seconds(time).fmt(f),
        }
    }
}

/// A fault in words. One that is new in the lab needs some here, and a row in the table.
pub fn words(fault: &Fault) -> String {
    match fault {
        Fault::Api(call, kind) => {
            let call = match call {
                Call::Start => "StartSession",
                Call::Resume => "ResumeSession",
                Call::Terminate => "TerminateSession",
                Call::DataKey => "GenerateDataKey",
                Call::DescribeNodes => "DescribeInstanceInformation",
                Call::GetDocument => "GetDocument",
                Call::CallerIdentity => "GetCallerIdentity",
            };
            let kind = match kind {
                ApiFault::Throttled => "throttled",
                ApiFault::Denied => "denied",
                ApiFault::Forbidden => "answered with a bare 403",
                ApiFault::Expired => "says that the token has expired",
                ApiFault::TargetNotConnected => "says that the target is not connected",
                ApiFault::Internal => "answered with 500",
                ApiFault::Garbage => "answered with garbage",
                ApiFault::Silence => "not answered",
                ApiFault::NoToken => "answered without a token",
            };
            format!("{call} {kind}")
        }
        Fault::Upgrades(UpgradeFault::Refused(status)) => format!("upgrades refused with {status}"),
        Fault::Upgrades(UpgradeFault::Stalled) => "upgrades not answered".into(),
        Fault::Refuse => "everything refused".into(),
        Fault::BlackHole => "black hole".into(),
        Fault::Freeze => "link frozen".into(),
        Fault::AgentRefuse => "agents refused".into(),
        Fault::AgentFreeze => "the agents' link frozen".into(),
        Fault::DestinationRefused => "destination refuses".into(),
        Fault::SlowLink(Link { latency, bandwidth }) => {
            format!("way slow ({} ms, {} kB/s)", latency.as_millis(), bandwidth / 1000)
        }
        Fault::LostMessages(loss) => format!("{:.0} % of messages lost", 100.0 * loss.input),
        Fault::AgentAway => "agent away".into(),
        Fault::IdleTimeout(limit) => format!("idle timeout of {} s", limit.as_secs()),
        Fault::MaximumLife(limit) => format!("sessions live {} s", limit.as_secs()),
        Fault::Clock(ahead) => format!("the service's clock is {ahead} s ahead"),
    }
}

/// The calls that a session of a tunnel with a named target needs. The others are the doctor's, or only tell of targets by tag and of
/// the account's limit: `targets` and `rotation` among the end-to-end tests have their faults.
pub const CALLS: [Call; 4] = [Call::Start, Call::Resume, Call::Terminate, Call::DataKey];

/// Which of the lab's faults no step puts in force, by the names of what they set, and of an enum's values.
pub fn missing<'a>(steps: impl Iterator<Item = &'a Step>) -> Vec<String> {
    let faults: Vec<Fault> = steps.filter_map(Step::fault).collect();
    let untouched = autossm_lab::fault::Faults::default();
    let json = |faults| serde_json::to_value(faults).expect("names and numbers");
    let (serde_json::Value::Object(fields), sets) = (json(untouched), |field: &str| {
        faults.iter().any(|fault| {
            let mut one = untouched;
            one.set(*fault);
            json(one)[field] != json(untouched)[field]
        })
    }) else {
        unreachable!("a struct is an object")
    };
    let others = ["describe_nodes", "get_document", "caller_identity"];
    let fields = fields.keys().filter(|field| !others.contains(&field.as_str()));
    let mut missing: Vec<String> = fields.filter(|field| !sets(field)).cloned().collect();
    for call in &CALLS {
        for kind in ApiFault::value_variants() {
            let fault = Fault::Api(*call, *kind);
            let means_nothing = *kind == ApiFault::NoToken && *call != Call::Resume;
            if !means_nothing && !faults.contains(&fault) {
                missing.push(words(&fault));
            }
        }
    }
    missing
}
