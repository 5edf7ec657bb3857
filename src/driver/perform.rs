//! Performs what the core has decided.

use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc::error::SendError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::begin::{self, begin};
use super::session::{Message, Session};
use super::{Driver, leftovers, probing, report};
use crate::plugin::process::Running;
use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::health::Found;
use crate::tunnel::rotation::Limit;
use crate::tunnel::{Action, Event, Generation, Report, SessionEvent};

impl Driver {
    pub(super) fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start(generation) => self.start(generation),
            Action::Launch(generation) => {
                let failure = self.launch(generation).err()?;
                return Some(Event::Session(generation, SessionEvent::LaunchFailed(failure)));
            }
            Action::Route(generations) => {
                let routes = generations.iter().filter_map(|g| self.sessions.get(g)?.route.clone()).collect();
                self.routes.send_replace(routes);
            }
            Action::Cut(generation) => {
                if let Some(route) = self.sessions.get(&generation).and_then(|session| session.route.as_ref())
                {
                    route.ended.cancel();
                }
            }
            Action::StopPlugin(generation) => {
                if let Some(plugin) = self.plugin(generation) {
                    plugin.stop();
                }
            }
            Action::KillPlugin(generation) => {
                if let Some(plugin) = self.plugin(generation) {
                    plugin.kill();
                }
            }
            Action::Terminate(generation) => self.terminate(generation),
            Action::Probe(generation) => self.probe(generation),
            Action::AskLimit => self.ask_limit(),
            Action::Forget(generation) => self.forget(generation, true),
            Action::LeaveRecorded(generation) => self.forget(generation, false),
            Action::Report(mut report) => {
                if let Report::Ready(..) = report {
                    // The service answers.
                    self.leftovers.terminate(&self.config);
                }
                self.note_target(&report);
                if let Report::Resumed(_, after, 1..) = report {
                    self.snapshot.send_modify(|snapshot| {
                        snapshot.resumed += 1;
                        snapshot.last_resumed = Some(after);
                    });
                }
                let session =
                    report::generation(&report).and_then(|generation| self.sessions.get(&generation));
                self.numbers.report(&report, session.map(|session| &session.seen));
                if let (Report::Ended { cut, .. }, Some(route)) =
                    (&mut report, session.and_then(|s| s.route.as_ref()))
                {
                    // Clients that have said goodbye are not cut.
                    *cut = cut.saturating_sub(route.half_closed.load(Relaxed));
                }
                let repeated = match &report {
                    Report::Failed(_, failure, _) => {
                        self.failed_in_a_row += 1;
                        self.failed.pass(Instant::now().into_std(), &format!("{}: {failure}", failure.class))
                    }
                    Report::Ready(..) => {
                        self.failed_in_a_row = 0;
                        self.replacing.reset();
                        Some(self.failed.reset())
                    }
                    Report::FailingOver(generation, _) | Report::Replacing(generation, _) => {
                        self.replacing.pass(Instant::now().into_std(), &generation.0.to_string())
                    }
                    _ => Some(0),
                };
                let target = session.and_then(|session| session.begun.as_ref());
                let target = target.map_or("", |begun| begun.target.as_str());
                report::write(&self.config.name, session.map_or("", Session::id), target, &report, repeated);
            }
            Action::Stopped => {}
        }
        None
    }

    fn plugin(&self, generation: Generation) -> Option<&Running> {
        self.sessions.get(&generation)?.plugin.as_ref()
    }

    fn start(&mut self, generation: Generation) {
        let (config, shared, targets) = (self.config.clone(), self.shared.clone(), self.targets.clone());
        self.sessions.insert(generation, Session::default());
        let (sender, beside, record) =
            (self.sender.clone(), self.core.beside(generation), self.record.clone());
        tokio::spawn(async move {
            let is_wanted = || !sender.is_closed();
            let begun = begin(&config, &shared, &targets, generation, &beside, is_wanted).await.map(Box::new);
            // Before anybody is told: whoever is to hear of it may have gone, and this process may go too.
            if let Ok(begun) = &begun
                && let Err(error) = record.add(&begun.started.session_id)
            {
                let (tunnel, session) = (&config.name, &begun.started.session_id);
                warn!(tunnel, session, %error, "the session could not be recorded");
            }
            let told = sender.send(Message::Begun(generation, begun)).await;
            if let Err(SendError(Message::Begun(_, Ok(begun)))) = told {
                leftovers::terminate(&config, &record, &shared.clients, &begun.started.session_id).await;
            }
        });
    }

    /// What a report says of targets.
    fn note_target(&mut self, report: &Report) {
        match report {
            Report::Ready(generation, _) => {
                begin::lock(&self.targets).there(*generation);
                self.waiting_for_target = None;
            }
            Report::Failed(generation, failure, _) => {
                let started = self.sessions.get(generation).is_some_and(|session| session.begun.is_some());
                if started && failure.class == Class::Network {
                    // The service has taken it for connected, and nothing came of it.
                    begin::lock(&self.targets).not_there(
                        *generation,
                        failure.clone(),
                        Instant::now().into_std(),
                    );
                }
                if failure.class == Class::TargetNotConnected {
                    self.wait_for_target();
                }
            }
            _ => {}
        }
    }

    fn wait_for_target(&mut self) {
        let since = self.waiting_for_target.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        let (config, shared) = (self.config.clone(), self.shared.clone());
        let watch = begin::watch(config, shared, self.targets.clone(), since.into_std(), self.sender.clone());
        self.waiting_for_target = Some((since, AbortOnDropHandle::new(tokio::spawn(watch))));
    }

    fn launch(&mut self, generation: Generation) -> Result<(), Failure> {
        let Some(session) = self.sessions.get_mut(&generation) else { return Ok(()) };
        session.launch(generation, &self.config, &self.shared, &self.sender)
    }

    fn terminate(&self, generation: Generation) {
        let Some(begun) = self.sessions.get(&generation).and_then(|session| session.begun.as_ref()) else {
            return;
        };
        let (api, id, sender) = (begun.api.clone(), begun.started.session_id.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = api.terminate_session(&id).await;
            let _ = sender.send(Message::Terminated(generation, result)).await;
        });
    }

    /// Exactly one answer follows.
    fn probe(&self, generation: Generation) {
        let route = self.sessions.get(&generation).and_then(|session| session.route.clone());
        let (config, probe, sender) = (self.config.clone(), self.config.probe.clone(), self.sender.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let found = match (probe, route) {
                (Some(probe), Some(route)) => probing::probe(config, probe, route).await,
                _ => Found::Nothing,
            };
            let _ = sender.send(Message::Probed(generation, found, began.elapsed())).await;
        });
    }

    /// Not before a session serves, so that its client is there and its credentials are good.
    fn ask_limit(&self) {
        let (config, clients, sender) =
            (self.config.clone(), self.shared.clients.clone(), self.sender.clone());
        tokio::spawn(async move {
            let limit = match clients.get(&config.identity).await {
                Ok(api) => api.maximum_session_duration().await,
                Err(_) => Limit::Unknown,
            };
            let _ = sender.send(Message::Limit(limit)).await;
        });
    }

    fn forget(&mut self, generation: Generation, over: bool) {
        begin::lock(&self.targets).over(generation);
        let Some(session) = self.sessions.remove(&generation) else { return };
        if session.id().is_empty() {
            return;
        }
        if !over {
            self.leftovers.add(session.id().to_owned());
        } else if let Err(error) = self.record.remove(session.id()) {
            warn!(tunnel = self.config.name, session = session.id(), %error, "the session's record stays");
        }
    }

    /// Terminates the sessions that an earlier process has left at the service. Not for a tunnel that this process has
    /// run before.
    pub(super) fn terminate_leftovers(&mut self) {
        self.leftovers.take_over(&self.config);
    }
}
