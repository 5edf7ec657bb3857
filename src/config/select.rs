//! Which of the file's tunnels a command is about.

use super::keys::nearest;
use super::problem::quoted;
use super::{Config, Tunnel};

/// A tunnel was named that is not in the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no tunnel {}; {help}", quoted(name))]
pub struct UnknownTunnel {
    /// As it was named.
    pub name: String,
    /// The one that was probably meant, and all that there are.
    pub help: String,
}

impl Config {
    /// The tunnels of these names, disabled ones included; without names, every enabled one. In the file's order.
    ///
    /// # Errors
    /// A name that no tunnel has.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Tunnel>, UnknownTunnel> {
        let known = || self.tunnels.iter().map(|tunnel| tunnel.name.as_str());
        if let Some(name) = names.iter().find(|name| !known().any(|other| other == name.as_str())) {
            let all = match self.tunnels.as_slice() {
                [] => "the file has none yet".to_owned(),
                _ => format!("there are: {}", known().collect::<Vec<_>>().join(", ")),
            };
            let help = match nearest(name, known()) {
                Some(other) => format!("did you mean {}? {all}", quoted(other)),
                None => all,
            };
            return Err(UnknownTunnel { name: name.clone(), help });
        }
        let chosen =
            |tunnel: &&Tunnel| if names.is_empty() { tunnel.enabled } else { names.contains(&tunnel.name) };
        Ok(self.tunnels.iter().filter(chosen).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn names_choose_and_no_names_are_all_that_are_enabled() {
        let tunnel = |name, port, enabled| {
            format!(
                "[[tunnel]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"i-12345678\"\n\
                 remote_port = 1\nenabled = {enabled}\n"
            )
        };
        let text = tunnel("billing-db", 1, true) + &tunnel("spare", 2, false) + &tunnel("web", 3, true);
        let config = parse("f", &text).unwrap();
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            config
                .select(&wanted)
                .map(|chosen| chosen.iter().map(|tunnel| tunnel.name.as_str()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["billing-db", "web"]);
        assert_eq!(names(&["spare"]).unwrap(), ["spare"]);
        assert_eq!(names(&["web", "billing-db", "web"]).unwrap(), ["billing-db", "web"]);
        let shown = |wanted: &[&str]| names(wanted).unwrap_err().to_string();
        assert_eq!(
            shown(&["web", "biling-db"]),
            "there is no tunnel `biling-db`; did you mean `billing-db`? there are: billing-db, spare, web"
        );
        assert_eq!(shown(&["x"]), "there is no tunnel `x`; there are: billing-db, spare, web");
    }
}
