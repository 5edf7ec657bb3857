//! How long a destination may say nothing to a client that has shut down its sending side.

use tokio::sync::watch;
use tokio::time::Instant;

use super::flow::Flow;
use crate::proxy::Settings;
use crate::proxy::route::Link;

/// The clock that runs after a client's FIN, and begins anew with everything that shows that the destination is not
/// just silent: a byte of the answer, a client slow to take it, a request still on its way, an answer of which something is
/// still missing here, a data channel that is down.
pub struct Silence {
    until: Instant,
    since: Instant,
    /// Bytes of the request that the plugin still held when it was looked at last.
    held: usize,
}

impl Silence {
    pub(super) fn begin(link: &Link, settings: &watch::Receiver<Settings>) -> Self {
        let since = Instant::now();
        let until = since + settings.borrow().half_close_timeout;
        Self { until, since, held: link.route().ledger.held(link.stream) }
    }

    /// When it is to be looked at next.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// To be asked at `until`; if it is not over, `until` is later afterwards.
    pub(super) fn is_over(
        &mut self,
        flow: &Flow<'_>,
        link: &Link,
        settings: &watch::Receiver<Settings>,
    ) -> bool {
        let route = link.route();
        let now = Instant::now();
        let held = route.ledger.held(link.stream);
        let busy = held != self.held || flow.is_busy() || flow.lacks_something();
        self.held = held;
        self.since = if busy { now } else { self.since.max(flow.heard()) };
        self.until = self.since + settings.borrow().half_close_timeout;
        self.until <= now
    }
}
