//! What was found, and how it is told.

use serde::Serialize;

use crate::cli::paint::{Colour, Painter};

/// How it is. In the order of their weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Ok,
    /// Could not be looked at, or need not.
    Skipped,
    Warning,
    Failure,
}

/// One check's result.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// A word for programs.
    pub check: &'static str,
    pub verdict: Verdict,
    pub message: String,
    pub remedy: Option<String>,
    /// It follows from a failure of one of these checks, where there is one.
    pub because: &'static [&'static str],
}

impl Finding {
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, message: message.into(), remedy: None, because: &[] }
    }

    pub fn skipped(check: &'static str, message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::ok(check, message) }
    }

    pub fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, remedy: Some(remedy.into()), ..Self::ok(check, message) }
    }

    pub fn failure(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failure, ..Self::warning(check, message, remedy) }
    }

    pub fn because(self, because: &'static [&'static str]) -> Self {
        Self { because, ..self }
    }

    /// Of an error whose words end in what is to be done about it.
    pub fn failure_of(check: &'static str, words: &str, remedy: &str) -> Self {
        match words.rsplit_once("; ") {
            Some((what, hint)) => Self::failure(check, what, hint),
            None => Self::failure(check, words, remedy),
        }
    }
}

/// What belongs together.
#[derive(Clone, Debug)]
pub(super) struct Section {
    title: String,
    tunnels: Vec<String>,
    findings: Vec<Finding>,
}

impl Section {
    /// `tunnels` are those whose section this is; without any, it is everybody's.
    pub fn new(title: &str, tunnels: &[&str]) -> Self {
        let tunnels = tunnels.iter().map(|name| (*name).to_owned()).collect();
        Self { title: title.to_owned(), tunnels, findings: Vec::new() }
    }

    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }
}

/// One cause is one failure: what follows from another one is a warning.
pub(super) fn settle(sections: &mut [Section]) {
    let failures: Vec<_> = sections
        .iter()
        .flat_map(|section| section.findings.iter().map(move |finding| (&section.tunnels, finding)))
        .filter(|(_, finding)| finding.verdict == Verdict::Failure && finding.because.is_empty())
        .map(|(tunnels, finding)| (tunnels.clone(), finding.check))
        .collect();
    for section in sections {
        let concerns = |tunnels: &[String]| {
            tunnels.is_empty() || tunnels.iter().any(|name| section.tunnels.contains(name))
        };
        for finding in &mut section.findings {
            let explained =
                failures.iter().any(|(tunnels, check)| concerns(tunnels) && finding.because.contains(check));
            if explained && finding.verdict == Verdict::Failure {
                finding.verdict = Verdict::Warning;
            }
        }
    }
}

/// A check as JSON has it.
#[derive(Serialize)]
pub(super) struct Flat<'a> {
    check: &'a str,
    about: &'a str,
    tunnels: &'a [String],
    verdict: Verdict,
    message: &'a str,
    remedy: Option<&'a str>,
}

/// All checks, one after the other.
pub(super) fn flat(sections: &[Section]) -> Vec<Flat<'_>> {
    let pairs =
        sections.iter().flat_map(|section| section.findings.iter().map(move |found| (section, found)));
    pairs
        .map(|(section, finding)| Flat {
            check: finding.check,
            about: &section.title,
            tunnels: &section.tunnels,
            verdict: finding.verdict,
            message: &finding.message,
            remedy: finding.remedy.as_deref(),
        })
        .collect()
}

/// The worst of all.
pub(super) fn worst(sections: &[Section]) -> Verdict {
    let verdicts = sections.iter().flat_map(|section| &section.findings).map(|finding| finding.verdict);
    verdicts.max().unwrap_or(Verdict::Ok)
}

/// For people: a line for each check, its remedy beneath it, and a sum at the end.
pub(super) fn text(sections: &[Section], painter: Painter) -> String {
    let mut text = String::new();
    let all = || sections.iter().flat_map(|section| &section.findings);
    let width = all().map(|finding| finding.check.len()).max().unwrap_or(0);
    for section in sections {
        text += &painter.paint(&section.title, Colour::Bold);
        text.push('\n');
        for Finding { check, verdict, message, remedy, .. } in &section.findings {
            let (word, colour) = match verdict {
                Verdict::Ok => ("ok", Colour::Green),
                Verdict::Skipped => ("-", Colour::Dim),
                Verdict::Warning => ("warning", Colour::Yellow),
                Verdict::Failure => ("FAILURE", Colour::Red),
            };
            let word = painter.padded(word, colour, "warning".len());
            text += &format!("  {word}  {check:width$}  {}\n", painter.paint(message, Colour::Plain));
            if let Some(remedy) = remedy {
                let indent = " ".repeat(2 + "warning".len() + 2 + width + 2);
                text += &format!("{indent}→ {}\n", painter.paint(remedy, Colour::Plain));
            }
        }
    }
    let count = |verdict| all().filter(|finding| finding.verdict == verdict).count();
    let sum = match (count(Verdict::Failure), count(Verdict::Warning)) {
        (0, 0) => painter.paint("nothing is wrong", Colour::Green),
        (0, warnings) => painter.paint(&format!("nothing fails; warnings: {warnings}"), Colour::Yellow),
        (failures, warnings) => {
            painter.paint(&format!("failures: {failures}, warnings: {warnings}"), Colour::Red)
        }
    };
    text + &sum + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_a_failure_is_a_warning() {
        let section = |tunnel: &str, check, verdict| {
            let mut section = Section::new(tunnel, &[tunnel]);
            section.add(Finding::failure("daemon", "waits", "-").because(&["plugin", "listen"]));
            section.add(Finding { verdict, ..Finding::ok(check, "") });
            section
        };
        let mut sections = [
            section("a", "listen", Verdict::Failure),
            section("b", "target", Verdict::Failure),
            section("c", "listen", Verdict::Warning),
        ];
        settle(&mut sections);
        let verdicts = sections.each_ref().map(|section| section.findings[0].verdict);
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Failure, Verdict::Failure]);
        let mut host = Section::new("host", &[]);
        host.add(Finding::failure("plugin", "missing", "-"));
        let mut sections = [host, section("a", "target", Verdict::Ok)];
        settle(&mut sections);
        assert_eq!(sections[1].findings[0].verdict, Verdict::Warning, "the host's is everybody's");
    }

    #[test]
    fn one_line_each_and_the_remedy_beneath() {
        let mut host = Section::new("host", &[]);
        host.add(Finding::ok("plugin", "there"));
        host.add(Finding::failure_of("credentials", "no AWS credentials: none; run `aws sso login`", "-"));
        let mut tunnel = Section::new("tunnel a", &["a"]);
        tunnel.add(Finding::warning("limits", "low\x1b[2J", "raise them"));
        let sections = [host, tunnel];
        assert_eq!(
            text(&sections, Painter::plain()),
            "host\n\
             \x20 ok       plugin       there\n\
             \x20 FAILURE  credentials  no AWS credentials: none\n\
             \x20                       → run `aws sso login`\n\
             tunnel a\n\
             \x20 warning  limits       low\u{fffd}[2J\n\
             \x20                       → raise them\n\
             failures: 1, warnings: 1\n"
        );
        assert_eq!(worst(&sections), Verdict::Failure);
        assert_eq!(worst(&[]), Verdict::Ok);
        let json = serde_json::to_value(flat(&sections)).unwrap();
        assert_eq!((&json[2]["tunnels"][0], &json[2]["verdict"]), (&"a".into(), &"warning".into()));
        assert_eq!(json[0]["remedy"], serde_json::Value::Null);
    }
}
