//! What can be made to go wrong, and the set of faults that are in force.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// The calls that faults can be put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    /// `StartSession`.
    Start,
    /// `ResumeSession`.
    Resume,
    /// `TerminateSession`.
    #[value(name = "end")]
    Terminate,
    /// `GenerateDataKey`, of KMS.
    #[value(name = "key")]
    DataKey,
    /// `DescribeInstanceInformation`.
    #[value(name = "describe")]
    DescribeNodes,
    /// `GetDocument`.
    #[value(name = "document")]
    GetDocument,
    /// `GetCallerIdentity`, of STS.
    #[value(name = "identity")]
    CallerIdentity,
}

/// How a call of the API fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
pub enum ApiFault {
    /// 400 `ThrottlingException`.
    Throttled,
    /// 400 `AccessDeniedException`.
    Denied,
    /// 403 without a JSON body, as a proxy on the way would answer.
    Forbidden,
    /// 400 `ExpiredTokenException`.
    Expired,
    /// 400 `TargetNotConnected`.
    #[value(name = "not-connected")]
    TargetNotConnected,
    /// 500 `InternalServerError`.
    Internal,
    /// 200 with a body that is no JSON.
    Garbage,
    /// The connection is accepted, the request read, nothing answered. A client that is still waiting when the
    /// fault is cleared gets its answer; one that went away was never counted.
    Silence,
    /// `ResumeSession` answers without a token. Without effect on the other calls.
    NoToken,
}

/// What happens to requests for a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum UpgradeFault {
    /// Answered with this HTTP status.
    Refused(u16),
    /// Never answered, as long as the fault is in force.
    Stalled,
}

/// The state of the way to the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Network {
    /// As it should be.
    #[default]
    Up,
    /// Every connection is reset: new ones at accept, open ones when the fault begins.
    Refusing,
    /// Connections are accepted and stay open, but nothing is read or written.
    BlackHole,
    /// The bytes of all connections stand still in both directions, and go on in their order afterwards. Nothing is lost
    /// but what was under way to a client that has closed its connection meanwhile.
    Frozen,
}

/// A slow way to the service. Latency counts once in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// In each direction.
    pub latency: Duration,
    /// Bytes per second of each connection in each direction; 0 for no limit.
    pub bandwidth: u64,
}

/// Fractions of messages lost between client and agent, 0.0 to 1.0, drawn with the lab's seed. The handshake is spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loss {
    /// Stream messages of the client.
    pub input: f64,
    /// Stream messages of the agent.
    pub output: f64,
    /// Acknowledgements by the client.
    pub acknowledgements_in: f64,
    /// Acknowledgements by the agent.
    pub acknowledgements_out: f64,
}

impl Loss {
    /// The same fraction of everything; 1.0 loses all of it.
    pub fn of(fraction: f64) -> Self {
        Self {
            input: fraction,
            output: fraction,
            acknowledgements_in: fraction,
            acknowledgements_out: fraction,
        }
    }
}

/// When the service hears that the worker of a session has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Its supervisor says so at once.
    AtOnce,
    /// After this time; a minute, of the real one's.
    After(Duration),
    /// Its supervisor has died, too.
    Never,
}

/// A fault that stays until it is cleared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// A call of the API fails.
    Api(Call, ApiFault),
    /// No WebSocket can be opened.
    Upgrades(UpgradeFault),
    /// Everything is refused and reset.
    Refuse,
    /// Everything is accepted and nothing answered.
    BlackHole,
    /// The clients' way stands still, and goes on where it was.
    Freeze,
    /// Agents are refused and reset, clients are not.
    AgentRefuse,
    /// The agents' way stands still, and goes on where it was.
    AgentFreeze,
    /// The agent cannot reach the destination.
    DestinationRefused,
    /// The way to the service is slow.
    SlowLink(Link),
    /// Messages are lost.
    LostMessages(Loss),
    /// The agent has lost its connection to the service.
    AgentAway,
    /// Sessions without stream data for so long are ended. Not a fault as such: the account's setting, 20 min.
    IdleTimeout(Duration),
    /// Sessions older than this are ended. Off by default.
    MaximumLife(Duration),
    /// The service's clock is so many seconds ahead of the host's, or behind it.
    Clock(i64),
}

/// All that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Faults {
    /// On `StartSession`.
    pub start: Option<ApiFault>,
    /// On `ResumeSession`.
    pub resume: Option<ApiFault>,
    /// On `TerminateSession`.
    pub terminate: Option<ApiFault>,
    /// On `GenerateDataKey`.
    pub data_key: Option<ApiFault>,
    /// On `DescribeInstanceInformation`.
    pub describe_nodes: Option<ApiFault>,
    /// On `GetDocument`.
    pub get_document: Option<ApiFault>,
    /// On `GetCallerIdentity`.
    pub caller_identity: Option<ApiFault>,
    /// On WebSocket upgrades.
    pub upgrades: Option<UpgradeFault>,
    /// The clients' way to the service.
    pub network: Network,
    /// The agents' way to the service.
    pub agent_network: Network,
    /// The destination answers no connection.
    pub destination_refused: bool,
    /// How fast the way is.
    pub link: Link,
    /// What is lost.
    pub loss: Loss,
    /// The agent has lost its connection.
    pub agent_away: bool,
    /// The account's idle timeout.
    pub idle_timeout: Duration,
    /// The account's maximum session duration.
    pub maximum_life: Option<Duration>,
    /// By how many seconds the service's clock is ahead.
    pub clock: i64,
}

/// The service's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20 * 60);

impl Default for Faults {
    fn default() -> Self {
        Self {
            start: None,
            resume: None,
            terminate: None,
            data_key: None,
            describe_nodes: None,
            get_document: None,
            caller_identity: None,
            upgrades: None,
            network: Network::Up,
            agent_network: Network::Up,
            destination_refused: false,
            link: Link::default(),
            loss: Loss::default(),
            agent_away: false,
            idle_timeout: IDLE_TIMEOUT,
            maximum_life: None,
            clock: 0,
        }
    }
}

impl Faults {
    /// The fault on a call of the API.
    pub fn on(&self, call: Call) -> Option<ApiFault> {
        match call {
            Call::Start => self.start,
            Call::Resume => self.resume,
            Call::Terminate => self.terminate,
            Call::DataKey => self.data_key,
            Call::DescribeNodes => self.describe_nodes,
            Call::GetDocument => self.get_document,
            Call::CallerIdentity => self.caller_identity,
        }
    }

    /// Puts `fault` in force.
    pub fn set(&mut self, fault: Fault) {
        match fault {
            Fault::Api(call, fault) => *self.on_mut(call) = Some(fault),
            Fault::Upgrades(fault) => self.upgrades = Some(fault),
            Fault::Refuse => self.network = Network::Refusing,
            Fault::BlackHole => self.network = Network::BlackHole,
            Fault::Freeze => self.network = Network::Frozen,
            Fault::AgentRefuse => self.agent_network = Network::Refusing,
            Fault::AgentFreeze => self.agent_network = Network::Frozen,
            Fault::DestinationRefused => self.destination_refused = true,
            Fault::SlowLink(link) => self.link = link,
            Fault::LostMessages(loss) => self.loss = loss,
            Fault::AgentAway => self.agent_away = true,
            Fault::IdleTimeout(limit) => self.idle_timeout = limit,
            Fault::MaximumLife(limit) => self.maximum_life = Some(limit),
            Fault::Clock(ahead) => self.clock = ahead,
        }
    }

    /// Takes back what `fault` has set; a different fault of the same kind goes with it.
    pub(crate) fn clear(&mut self, fault: Fault) {
        match fault {
            Fault::Api(call, _) => *self.on_mut(call) = None,
            Fault::Upgrades(_) => self.upgrades = None,
            Fault::Refuse | Fault::BlackHole | Fault::Freeze => self.network = Network::Up,
            Fault::AgentRefuse | Fault::AgentFreeze => self.agent_network = Network::Up,
            Fault::DestinationRefused => self.destination_refused = false,
            Fault::SlowLink(_) => self.link = Link::default(),
            Fault::LostMessages(_) => self.loss = Loss::default(),
            Fault::AgentAway => self.agent_away = false,
            Fault::IdleTimeout(_) => self.idle_timeout = IDLE_TIMEOUT,
            Fault::MaximumLife(_) => self.maximum_life = None,
            Fault::Clock(_) => self.clock = 0,
        }
    }

    fn on_mut(&mut self, call: Call) -> &mut Option<ApiFault> {
        match call {
            Call::Start => &mut self.start,
            Call::Resume => &mut self.resume,
            Call::Terminate => &mut self.terminate,
            Call::DataKey => &mut self.data_key,
            Call::DescribeNodes => &mut self.describe_nodes,
            Call::GetDocument => &mut self.get_document,
            Call::CallerIdentity => &mut self.caller_identity,
        }
    }
}
