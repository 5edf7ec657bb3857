//! `[[hook]]`: commands that are run when something happens.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::keys::Default::{Absent, Required, Value};
use super::keys::Form::{Count, Duration as Period, Other};
use super::keys::{Default, Key, Table, nearest};
use super::problem::{Report, quoted};
use super::value::{Given, Wrong};
use super::{Hook, text};
use crate::telemetry::catalog;

/// What a `[[hook]]` gives; what is absent, or wrong and reported, is `None`.
#[derive(std::default::Default)]
pub(super) struct HookSection {
    span: Range<usize>,
    given: Vec<&'static str>,
    pub name: Option<Spanned<String>>,
    events: Option<Vec<Spanned<String>>>,
    pub tunnels: Option<Vec<Spanned<String>>>,
    command: Option<Vec<String>>,
    timeout: Option<Duration>,
    min_interval: Option<Duration>,
    burst: Option<u16>,
    environment: Option<Vec<Spanned<String>>>,
}

type HookKey = Key<HookSection>;

/// Every key, in the order of the reference.
pub(super) static HOOK_KEYS: &[HookKey] = &[
    HookKey::new(
        "name",
        Other("1 to 48 characters of `a-z`, `0-9` and `-`", |s, g| s.name = g.placed(text::name)),
        Required,
        "What the hook is called in the log.",
    )
    .also(&["id", "label"]),
    HookKey::new(
        "events",
        Other("a word of the events (monitoring.md), or a list of these", |s, g| s.events = g.texts(event)),
        Required,
        "What it is run for.",
    )
    .also(&["on", "when"]),
    HookKey::new(
        "command",
        Other("a program's path, or a list: the path and its arguments", |s, g| s.command = command(g)),
        Required,
        "What is run, without a shell, with the event as one line of JSON on its standard input.",
    )
    .also(&["exec", "run", "program", "cmd"]),
    HookKey::new(
        "tunnels",
        Other("a tunnel's name, or a list of these", |s, g| s.tunnels = g.texts(|text| Ok(text.to_owned()))),
        Absent("all"),
        "The tunnels whose events it is run for. Events of the whole process count as everybody's.",
    ),
    HookKey::new(
        "timeout",
        Period(Duration::from_millis(100), Duration::from_secs(300), |s| &mut s.timeout),
        Value("\"10s\""),
        "After this it is killed, with all that it has started.",
    ),
    HookKey::new(
        "min_interval",
        Period(Duration::ZERO, Duration::from_secs(86_400), |s| &mut s.min_interval),
        Value("\"10s\""),
        "In the long run it is started once in this time.",
    )
    .also(&["interval", "rate_limit", "throttle", "cooldown"]),
    HookKey::new(
        "burst",
        Count(1, 100, |s| &mut s.burst),
        Value("5"),
        "After a quiet time so many events may follow one another at once. No more of them wait for their turn: the newest \
         stay, what is left out is counted.",
    ),
    HookKey::new(
        "environment",
        Other("a variable's name, or a list of these", |s, g| s.environment = g.texts(variable)),
        Absent("none"),
        "What it gets of the daemon's environment, beside `PATH`, `HOME`, `LANG` and `TZ`.",
    )
    .also(&["env", "pass_environment"]),
];

const TABLE: Table<HookSection> = Table { keys: HOOK_KEYS, prefix: "hook.", one: "a hook" };

/// Events of the catalog that no hook can be run for: the first are written for the log alone, at a lower level than
/// info; the next come before there are hooks, or from another program; the last ones would run the hook for itself.
const NEVER: &[&str] = &[
    "keep_alive",
    "plugin_says",
    "probed",
    "round_trip",
    "usage", // below info
    "config_invalid",
    "os_fault",
    "not_adopted",
    "web_listening", // not while hooks are there
    "hook_failed",
    "hook_behind",
];

pub(super) fn read(table: &DeTable<'_>, span: Range<usize>, report: &mut Report<'_>) -> HookSection {
    let (mut section, places) = TABLE.read(table, report);
    section.given = places.into_iter().map(|(key, _)| key).collect();
    section.span = span;
    section
}

/// With the defaults filled in; `None` if a required key is missing or wrong.
pub(super) fn whole(section: HookSection, report: &mut Report<'_>) -> Option<Hook> {
    for key in HOOK_KEYS.iter().filter(|key| matches!(key.default, Default::Required)) {
        if !section.given.contains(&key.name) {
            let whose = match &section.name {
                Some(name) => format!("hook {}", quoted(name.get_ref())),
                None => "this hook".to_owned(),
            };
            let help = format!("add `{} = …`: {}", key.name, key.form);
            report.missing(section.span.clone(), format!("{whose} has no `{}`", key.name), help);
        }
    }
    let plain = |list: Vec<Spanned<String>>| list.into_iter().map(Spanned::into_inner).collect();
    let mut command = section.command?.into_iter();
    Some(Hook {
        name: section.name?.into_inner(),
        events: plain(section.events?),
        tunnels: section.tunnels.map(plain),
        program: PathBuf::from(command.next()?),
        arguments: command.collect(),
        timeout: section.timeout.unwrap_or(Duration::from_secs(10)),
        min_interval: section.min_interval.unwrap_or(Duration::from_secs(10)),
        burst: section.burst.map_or(5, usize::from),
        environment: section.environment.map(plain).unwrap_or_default(),
    })
}

/// The words that a hook can be run for, in the catalog's order.
pub fn event_names() -> impl Iterator<Item = &'static str> {
    catalog::ENTRIES.iter().map(|entry| entry.event).filter(|event| !NEVER.contains(event))
}

fn event(text: &str) -> Result<String, Wrong> {
    if event_names().any(|event| event == text) {
        return Ok(text.to_owned());
    }
    if NEVER.contains(&text) {
        let what = format!("no hook is run for the event {}", quoted(text));
        return Err(Wrong::new(what, "choose others; docs/monitoring.md has a list of the most useful"));
    }
    let help = match nearest(text, event_names()) {
        Some(event) => format!("did you mean \"{event}\"?"),
        None => {
            "write a word of the column EVENT of `autossm events`, such as \"lost\", \"failed\" or \"ready\""
                .to_owned()
        }
    };
    Err(Wrong::new(format!("{} is no event", quoted(text)), help))
}

/// A path, or a list of it and its arguments.
fn command(given: &mut Given<'_, '_>) -> Option<Vec<String>> {
    let values = given.one_or_more(given.value);
    let Some((program, arguments)) = values.split_first() else {
        return given
            .wrong(Wrong::new("the list is empty", "name a program by its path, then its arguments"));
    };
    let program = given.text_at(program, program_path);
    let argument = |text: &str| match text.contains('\0') {
        false => Ok(text.to_owned()),
        true => Err(Wrong::new("an argument has a NUL character", "leave it out")),
    };
    let arguments: Option<Vec<_>> = arguments.iter().map(|value| given.text_at(value, argument)).collect();
    Some([program?].into_iter().chain(arguments?).collect())
}

/// The daemon's working directory is nobody's choice, and `PATH` differs between a shell and a service.
fn program_path(text: &str) -> Result<String, Wrong> {
    let words: Vec<_> = text.split_whitespace().map(|word| format!("\"{word}\"")).collect();
    // There is no shell that would take it apart.
    if words.len() > 1 {
        let what = format!("{} is a program with arguments in one string", quoted(text));
        return Err(Wrong::new(what, format!("write a list: [{}]", words.join(", "))));
    }
    if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("{} is not an absolute path", quoted(text)), "write a path that begins with /"))
}

fn variable(text: &str) -> Result<String, Wrong> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !text.is_empty() && text.chars().all(word) && !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    let what = format!("{} is not a variable's name", quoted(text));
    Err(Wrong::new(what, "write the name alone; its value comes from the daemon's environment"))
}

/// The names of its keys, in the order of the reference.
pub fn key_names() -> impl Iterator<Item = &'static str> {
    HOOK_KEYS.iter().map(|key| key.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse};

    const TUNNEL: &str =
        "[[tunnel]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\ntarget = \"i-12345678\"\nremote_port = 1\n";
    const HOOK: &str = "[[hook]]\nname = \"chat\"\nevents = [\"lost\", \"ready\"]\ncommand = \"/bin/true\"\n";

    fn read(keys: &str) -> Config {
        parse("f", &format!("{TUNNEL}{HOOK}{keys}")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn a_hook_is_read_and_defaults_are_as_the_table_says() {
        let hook = read("").hooks.remove(0);
        assert_eq!((hook.events, hook.tunnels), (vec!["lost".to_owned(), "ready".to_owned()], None));
        assert_eq!((hook.program, hook.arguments.len()), (PathBuf::from("/bin/true"), 0));
        let written: String = HOOK_KEYS
            .iter()
            .filter_map(|key| match key.default {
                Value(value) => Some(format!("{} = {value}\n", key.name)),
                _ => None,
            })
            .collect();
        assert!(written.contains("timeout"));
        assert_eq!(read(&written), read(""));
        let list = HOOK.replace("\"/bin/true\"", "[\"/bin/sh\", \"-c\", \"true\"]");
        let mut hooks = parse("f", &format!("{TUNNEL}{list}")).unwrap().hooks;
        assert_eq!(hooks.remove(0).arguments, ["-c", "true"]);
    }

    /// What is written with a level below info never comes to a hook, and what is, does: the list is held against the
    /// sources by whoever adds an event.
    #[test]
    fn words_that_never_come_are_of_the_catalog() {
        for event in NEVER {
            assert!(catalog::find(event).is_some(), "{event}");
        }
        assert!(event_names().any(|event| event == "state") && event_names().count() > 30);
    }
}
