//! The managed nodes that carry a tag: asked for once by everybody who wants to know at the same time, and remembered for
//! as long as each of them finds good enough.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::api::Node;
use crate::tunnel::failure::Failure;

/// A tag's key and value.
type Tag = (String, String);
type Answer = Arc<tokio::sync::Mutex<Option<(Instant, Vec<Node>)>>>;

/// One identity's answers. There are as many as there are tags in the configuration.
#[derive(Default)]
pub(super) struct Nodes(Mutex<HashMap<Tag, Answer>>);

impl Nodes {
    /// The nodes with this tag, from an answer that is at most `max_age` old, or else from `ask`. Whoever comes while
    /// somebody asks waits for that answer. A failure is not remembered.
    pub(super) async fn get(
        &self,
        key: &str,
        value: &str,
        max_age: Duration,
        ask: impl Future<Output = Result<Vec<Node>, Failure>>,
    ) -> Result<Vec<Node>, Failure> {
        let answer = {
            let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(answers.entry((key.to_owned(), value.to_owned())).or_default())
        };
        let came = Instant::now();
        let mut answer = answer.lock().await;
        // What arrived while this caller waited for it is new enough for anybody.
        if let Some((at, nodes)) = &*answer
            && (*at >= came || came.duration_since(*at) <= max_age)
        {
            return Ok(nodes.clone());
        }
        let nodes = ask.await?;
        *answer = Some((Instant::now(), nodes.clone()));
        Ok(nodes)
    }

    /// Those of the last answer, however old; none where there was none, or somebody asks at this moment.
    pub(super) fn last(&self, key: &str, value: &str) -> Vec<Node> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(&(key.to_owned(), value.to_owned()));
        let answer = answer.and_then(|answer| answer.try_lock().ok());
        answer.and_then(|answer| answer.as_ref().map(|(_, nodes)| nodes.clone())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::tunnel::failure::Class;

    const LONG: Duration = Duration::from_secs(3600);

    struct Service(AtomicU32);

    impl Service {
        async fn list(&self) -> Result<Vec<Node>, Failure> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Node { id: format!("i-{number}"), agent_version: None }])
        }
    }

    async fn first(nodes: &Nodes, service: &Service, value: &str, max_age: Duration) -> String {
        nodes.get("Role", value, max_age, service.list()).await.unwrap()[0].id.clone()
    }

    #[tokio::test]
    async fn an_answer_is_shared_until_it_is_too_old_for_somebody() {
        let (nodes, service) = (Nodes::default(), Service(AtomicU32::new(0)));
        let together = tokio::join!(
            first(&nodes, &service, "bastion", Duration::ZERO),
            first(&nodes, &service, "bastion", Duration::ZERO),
            first(&nodes, &service, "bastion", LONG),
        );
        assert_eq!((&*together.0, &*together.1, &*together.2), ("i-0", "i-0", "i-0"));
        assert_eq!(first(&nodes, &service, "bastion", LONG).await, "i-0");
        assert_eq!(first(&nodes, &service, "other", LONG).await, "i-1");
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(first(&nodes, &service, "bastion", Duration::from_millis(30)).await, "i-2");
        assert_eq!(first(&nodes, &service, "bastion", LONG).await, "i-2", "the newest counts for all");
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let (nodes, service) = (Nodes::default(), Service(AtomicU32::new(0)));
        let failing = async { Err(Failure::new(Class::Throttled, "slower")) };
        assert!(nodes.get("Role", "bastion", LONG, failing).await.is_err());
        assert_eq!(first(&nodes, &service, "bastion", LONG).await, "i-0");
    }
}
