//! The table of keys in words: for the reference in `docs/configuration.md`, and for what is said of a wrong key.

use std::fmt;

use super::duration::shown;
use super::hook::HOOK_KEYS;
use super::keys::{Default, Form, KEYS, Key};
use super::probe::PROBE_KEYS;

/// The reference of all keys, as a table in Markdown.
pub fn reference() -> String {
    table(KEYS)
}

/// The reference of the keys of `[tunnel.probe]`, likewise.
pub fn probe_reference() -> String {
    table(PROBE_KEYS)
}

/// The reference of the keys of `[[hook]]`, likewise.
pub fn hook_reference() -> String {
    table(HOOK_KEYS)
}

fn table<S>(keys: &[Key<S>]) -> String {
    let mut text = String::from("| key | value | default | |\n|---|---|---|---|\n");
    for key in keys {
        let name = format!("`{}`{}", key.name, if key.shared { "" } else { " ¹" });
        text += &format!("| {name} | {} | {} | {} |\n", key.form, key.default, key.about);
    }
    text
}

/// `autossm.toml(5)`, in roff.
pub fn manual(version: &str) -> String {
    let mut text = format!(".TH AUTOSSM.TOML 5 \"\" \"autossm {version}\" \"autossm\"\n{MANUAL}");
    text += &entries(KEYS);
    text += ".SH KEYS OF [tunnel.probe]\n";
    text += &entries(PROBE_KEYS);
    text += ".SH KEYS OF [[hook]]\n";
    text += &entries(HOOK_KEYS);
    text + MANUAL_END
}

fn entries<S>(keys: &[Key<S>]) -> String {
    let mut text = String::new();
    for key in keys {
        let shared = if key.shared { "" } else { " Not in [defaults]." };
        text += &format!(".TP\n\\fB{}\\fR\n", roff(key.name));
        text += &format!("{}\n.br\nTakes {}. ", roff(key.about), roff(&key.form.to_string()));
        text += &match &key.default {
            Default::Required => format!("\\fBRequired.\\fR{shared}\n"),
            other => format!("Without it: {}.{shared}\n", roff(&other.to_string())),
        };
    }
    text
}

const MANUAL: &str = r#".SH NAME
autossm.toml \- the tunnels of autossm
.SH SYNOPSIS
/etc/autossm/config.toml
.SH DESCRIPTION
A TOML file with a table [[tunnel]] for each tunnel, and [defaults] for what they have in common. Unknown keys are errors.
.BR autossm\-check (1)
shows everything that is wrong with a file, each with its line, its column and what would be right. Changes are put to
work with
.B systemctl reload 'autossm@*'
for tunnels that run, and with
.B systemctl daemon\-reload
and
.B systemctl start autossm.target
for new ones.
.SH EXAMPLE
.nf
[defaults]
region = "us\-west\-2"

[[tunnel]]
name = "billing\-db"
listen = "127.0.0.1:15432"
target = "mi\-0123456789abcdef0"
remote_host = "billing.internal"
remote_port = 5432
.fi
.SH KEYS
"#;

const MANUAL_END: &str = r#".SH FILES
.TP
/usr/share/doc/autossm/config.example.toml
A file that shows every key.
.SH SEE ALSO
.BR autossm (1),
.BR autossm\-check (1),
.BR autossm@.service (8)
"#;

/// Markdown's code in bold, and what roff would take for its own escaped.
fn roff(text: &str) -> String {
    let mut bold = false;
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '`' => {
                bold = !bold;
                out.push_str(if bold { "\\fB" } else { "\\fR" });
            }
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '*' => {}
            // At the beginning of a line it would begin a request.
            '.' | '\'' if out.is_empty() => out.extend(["\\&", &c.to_string()]),
            _ => out.push(c),
        }
    }
    out
}

impl<S> fmt::Display for Form<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(_) => f.write_str("`true` or `false`"),
            Self::Count(least, most, _) => write!(f, "a number, {least} to {most}"),
            Self::Duration(least, most, _) => {
                write!(f, "a duration, `{}` to `{}`", shown(*least), shown(*most))
            }
            Self::Other(words, _) => f.write_str(words),
        }
    }
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required => f.write_str("**required**"),
            Self::Value(value) => write!(f, "`{value}`"),
            Self::Absent(words) => f.write_str(words),
        }
    }
}
