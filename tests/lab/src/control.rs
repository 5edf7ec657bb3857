//! The lab commanded in words, a line each: for trying things by hand and from other processes.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::fault::{Fault, Link, Loss, Report, UpgradeFault};
use crate::lab::Lab;

/// The commands. A time at the end of a fault's line ends it by itself.
pub const HELP: &str = "\
close [CODE [REASON]]   abort   terminate [REASON]   sessions   status   faults   clear   help
agents close|abort   agents kill now|never|TIME   agents refuse|freeze [TIME]
refuse [TIME]   blackhole [TIME]   freeze [TIME]   away [TIME]   destination-refused [TIME]
start|resume|end|key|describe|document|identity throttled|denied|forbidden|expired|not-connected|internal|garbage|silence|no-token [TIME]
upgrades STATUS|stall [TIME]   slow LATENCY BYTES_PER_SECOND [TIME]   lose FRACTION [TIME]
idle TIME   life TIME   clock SECONDS";

/// Performs one command and says what came of it.
///
/// # Errors
/// The command cannot be understood.
pub fn perform(lab: &Lab, line: &str) -> anyhow::Result<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let rest = |from: usize| words.get(from..).unwrap_or_default().join(" ");
    Ok(match words[..] {
        ["close", ..] => {
            let code = words.get(1).map_or(Ok(1000), |code| code.parse()).context("close code")?;
            let reason = if words.len() > 2 { rest(2) } else { "Bye".into() };
            json!({ "closed": lab.close_all(code, &reason) })
        }
        ["abort"] => json!({ "aborted": lab.abort_all() }),
        ["agents", "close"] => json!({ "closed": lab.close_agents(1000, "Bye") }),
        ["agents", "abort"] => json!({ "aborted": lab.abort_agents() }),
        ["agents", "kill", told] => {
            let report = match told {
                "now" => Report::AtOnce,
                "never" => Report::Never,
                time => Report::After(duration(time)?),
            };
            json!({ "killed": lab.kill_agents(report) })
        }
        ["terminate", ..] => {
            let reason = if words.len() > 1 { rest(1) } else { "Session is already terminated".into() };
            json!({ "terminated": lab.terminate_all(&reason) })
        }
        ["sessions"] => json!(lab.status().sessions),
        ["status"] => json!(lab.status()),
        ["faults"] => json!(lab.faults()),
        ["clear"] => {
            lab.clear_all();
            json!({ "cleared": true })
        }
        ["help"] => json!({ "help": HELP.lines().collect::<Vec<_>>() }),
        _ => {
            let (fault, time) = fault(&words)?;
            match time {
                Some(time) => drop(lab.set_for(fault, time)),
                None => lab.set(fault),
            }
            json!({ "set": format!("{fault:?}"), "seconds": time.map(|time| time.as_secs_f64()) })
        }
    })
}

fn fault(words: &[&str]) -> anyhow::Result<(Fault, Option<Duration>)> {
    let (fault, time) = match *words {
        ["refuse", ref time @ ..] => (Fault::Refuse, time),
        ["blackhole", ref time @ ..] => (Fault::BlackHole, time),
        ["freeze", ref time @ ..] => (Fault::Freeze, time),
        ["agents", "refuse", ref time @ ..] => (Fault::AgentRefuse, time),
        ["agents", "freeze", ref time @ ..] => (Fault::AgentFreeze, time),
        ["away", ref time @ ..] => (Fault::AgentAway, time),
        ["destination-refused", ref time @ ..] => (Fault::DestinationRefused, time),
        [
            call @ ("start" | "resume" | "end" | "key" | "describe" | "document" | "identity"),
            fault,
            ref time @ ..,
        ] => (Fault::Api(word(call)?, word(fault)?), time),
        ["upgrades", "stall", ref time @ ..] => (Fault::Upgrades(UpgradeFault::Stalled), time),
        ["upgrades", status, ref time @ ..] => {
            (Fault::Upgrades(UpgradeFault::Refused(status.parse()?)), time)
        }
        ["slow", latency, bandwidth, ref time @ ..] => {
            (Fault::SlowLink(Link { latency: duration(latency)?, bandwidth: bandwidth.parse()? }), time)
        }
        ["lose", fraction, ref time @ ..] => (Fault::LostMessages(Loss::of(fraction.parse()?)), time),
        ["idle", limit] => (Fault::IdleTimeout(duration(limit)?), &words[..0]),
        ["clock", ahead] => (Fault::Clock(ahead.parse()?), &words[..0]),
        ["life", limit] => (Fault::MaximumLife(duration(limit)?), &words[..0]),
        _ => bail!("no such command; try help"),
    };
    Ok(match *time {
        [] => (fault, None),
        [time] => (fault, Some(duration(time)?)),
        _ => bail!("too many words; try help"),
    })
}

/// One of an enum's words.
fn word<T: ValueEnum>(word: &str) -> anyhow::Result<T> {
    T::from_str(word, false).map_err(|_| anyhow!("no such fault of a call: {word}"))
}

/// `500ms`, `20s`, `2m`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let number = |unit| text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok());
    let seconds = number("ms")
        .map(|number| number / 1000.0)
        .or_else(|| number("s"))
        .or_else(|| Some(number("m")? * 60.0))
        .with_context(|| format!("{text} is no time such as 500ms, 20s or 2m"))?;
    Duration::try_from_secs_f64(seconds).context("no time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ApiFault, Call};

    #[test]
    fn faults_are_understood() {
        let understood = |line: &str| fault(&line.split_whitespace().collect::<Vec<_>>()).ok();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(understood("refuse 20s"), Some((Fault::Refuse, seconds(20))));
        assert_eq!(understood("blackhole 2m"), Some((Fault::BlackHole, seconds(120))));
        assert_eq!(understood("freeze 30s"), Some((Fault::Freeze, seconds(30))));
        assert_eq!(understood("agents refuse 3s"), Some((Fault::AgentRefuse, seconds(3))));
        assert_eq!(understood("agents freeze"), Some((Fault::AgentFreeze, None)));
        assert_eq!(understood("lose 1 5s"), Some((Fault::LostMessages(Loss::of(1.0)), seconds(5))));
        assert_eq!(understood("resume denied"), Some((Fault::Api(Call::Resume, ApiFault::Denied), None)));
        let slow = Link { latency: Duration::from_millis(50), bandwidth: 1000 };
        assert_eq!(understood("slow 50ms 1000 1s"), Some((Fault::SlowLink(slow), seconds(1))));
        let stalled = Fault::Upgrades(UpgradeFault::Stalled);
        assert_eq!(understood("upgrades stall"), Some((stalled, None)));
        for wrong in ["refuse 20", "refuse 20s 30s", "refuse -1s", "resume", "upgrades no", "", "lose"] {
            assert_eq!(understood(wrong), None, "{wrong}");
        }
    }
}
