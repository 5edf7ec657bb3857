//! `autossm policy`: the least that the tunnels need of IAM.

mod arn;
mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use clap::Args;

use super::{ConfigArg, EXIT_CONFIG, EXIT_USAGE};
use crate::config::{self, Target, Tunnel};
use arn::Place;
use document::Policy;

/// What `autossm policy` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PolicyArgs {
    /// Tunnels that it is for, disabled ones too [default: every enabled one]
    #[arg(value_name = "TUNNEL")]
    pub tunnels: Vec<String>,

    /// The account of the targets, for narrower ARNs
    #[arg(long, value_name = "ID", value_parser = account)]
    pub account: Option<String>,

    /// Only the policy of this principal: a profile's name, a role's name or ARN, or `host`
    ///
    /// `host` is whoever autossm runs with, where a tunnel has no profile. Needed where there are several, and their policies go
    /// into a file or a pipe.
    #[arg(long = "for", value_name = "PRINCIPAL")]
    pub principal: Option<String>,

    /// The configuration file.
    #[command(flatten)]
    pub config: ConfigArg,
}

const EXAMPLES: &str = "\
Examples:
  autossm policy                              For every enabled tunnel
  autossm policy billing-db --account 123456789012
  autossm policy --for host > policy.json && aws iam put-role-policy --role-name tunnels \\
      --policy-name autossm --policy-document file://policy.json

Exit status:
  0   printed
  2   wrong command line, or there are several principals and none was chosen
  78  the configuration is wrong, or has no such tunnel";

/// The principal without a name.
const HOST: &str = "host";

fn account(text: &str) -> Result<String, String> {
    let good = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if good { Ok(text.to_owned()) } else { Err("an account id has 12 digits".to_owned()) }
}

/// Whose credentials: of a profile or of the usual chain, and the role that is assumed with them.
type Principal<'a> = (Option<&'a str>, Option<&'a str>);

/// Prints a policy, on a terminal one for each principal, one after the other; whose it is, and what cannot be known, goes to standard error.
///
/// # Errors
/// Standard output or standard error cannot be written to.
pub fn run(args: &PolicyArgs) -> io::Result<ExitCode> {
    let config = match config::load(&args.config.path) {
        Ok(config) => config,
        Err(problems) => {
            writeln!(io::stderr(), "{problems}")?;
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let tunnels = match config.select(&args.tunnels) {
        Ok(tunnels) => tunnels,
        Err(unknown) => {
            writeln!(io::stderr(), "error: {unknown}")?;
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    let mut policies = policies(&tunnels, args.account.as_deref());
    let all: Vec<_> = policies.keys().map(|principal| format!("--for {}", word(*principal))).collect();
    if let Some(wanted) = &args.principal {
        policies.retain(|principal, _| is(*principal, wanted));
        if policies.is_empty() {
            writeln!(err, "error: no tunnel is run by {wanted}; there are: {}", all.join(", "))?;
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    }
    if policies.len() > 1 && !io::stdout().is_terminal() {
        writeln!(err, "error: there are several principals, each with a policy of its own; choose one:")?;
        for choice in all {
            writeln!(err, "  {choice}")?;
        }
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    for (principal, policy) in policies {
        writeln!(err, "policy for {}:", title(principal))?;
        err.flush()?;
        match writeln!(out, "{}", policy.json()) {
            // Whoever reads has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            result => result?,
        }
    }
    for note in notes(&tunnels, args.account.as_deref()) {
        writeln!(err, "note: {note}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A role's after those of whoever assumes it.
fn policies<'a>(tunnels: &[&'a Tunnel], account: Option<&str>) -> BTreeMap<Principal<'a>, Policy> {
    let mut principals: BTreeMap<Principal<'_>, (Vec<&Tunnel>, BTreeSet<&str>)> = BTreeMap::new();
    for tunnel in tunnels {
        let (profile, role) = (tunnel.identity.profile.as_deref(), tunnel.identity.role_arn.as_deref());
        if let Some(role) = role {
            principals.entry((profile, None)).or_default().1.insert(role);
            // Two profiles may assume the same role, which needs one policy.
            principals.entry((None, Some(role))).or_default().0.push(tunnel);
        } else {
            principals.entry((profile, None)).or_default().0.push(tunnel);
        }
    }
    let policy = |(principal, (tunnels, roles)): (_, (Vec<&Tunnel>, BTreeSet<&str>))| {
        (principal, Policy::new(&tunnels, account, &roles))
    };
    principals.into_iter().map(policy).collect()
}

/// What chooses it on the command line.
fn word(principal: Principal<'_>) -> &str {
    match principal {
        (_, Some(role)) => role,
        (Some(profile), None) => profile,
        (None, None) => HOST,
    }
}

/// Whether it was meant. A role may be named without its path and account.
fn is(principal: Principal<'_>, wanted: &str) -> bool {
    let name = principal.1.and_then(|role| role.rsplit('/').next());
    word(principal) == wanted || name == Some(wanted)
}

fn title(principal: Principal<'_>) -> String {
    match principal {
        (_, Some(role)) => format!("the role {role}"),
        (Some(profile), None) => format!("the credentials of profile {profile}"),
        (None, None) => "the host's own role or user, which autossm runs with".to_owned(),
    }
}

fn notes(tunnels: &[&Tunnel], account: Option<&str>) -> Vec<String> {
    let mut notes = Vec::new();
    let places: Vec<_> = tunnels.iter().map(|tunnel| Place::of(tunnel, account)).collect();
    if places.iter().any(|place| !place.knows_region()) {
        notes.push(
            "a tunnel has no `region`: `*` stands for it, in the partition aws unless a role says otherwise"
                .to_owned(),
        );
    }
    if places.iter().any(|place| !place.knows_account()) {
        notes.push("the account is not known, and `*` stands for it: name it with --account".to_owned());
    }
    let is_container = |tunnel: &&Tunnel| matches!(&tunnel.target, Target::Ids(ids) if ids.iter().any(|id| id.starts_with("ecs:")));
    if tunnels.iter().any(is_container) {
        notes.push("a task of ECS is replaced by one with another id: allow task/CLUSTER/* where that shall not matter".to_owned());
    }
    let roles: BTreeMap<_, _> = tunnels
        .iter()
        .filter_map(|tunnel| {
            Some((tunnel.identity.role_arn.as_deref()?, tunnel.identity.external_id.is_some()))
        })
        .collect();
    for (role, external_id) in roles {
        let condition = if external_id { ", where sts:ExternalId is the tunnel's `external_id`" } else { "" };
        notes.push(format!("{role} has to trust whoever assumes it: its trust policy allows sts:AssumeRole to that principal{condition}"));
    }
    notes.push(
        "if the account encrypts sessions with KMS: kms:GenerateDataKey on that key too, for whoever starts them; the target's \
         role needs kms:Decrypt"
            .to_owned(),
    );
    notes
}

#[cfg(test)]
mod tests;
