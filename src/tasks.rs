//! Named background tasks: whoever ends first is told by name.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

/// Named background tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    running: JoinSet<Result<(), String>>,
    names: BTreeMap<tokio::task::Id, &'static str>,
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_checked(name, async move {
            task.await;
            Ok(())
        });
    }

    pub(crate) fn spawn_checked(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The name of the first task that ends.
    pub(crate) async fn one_ended(&mut self) -> String {
        let Some(ended) = self.running.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "without an error".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(panic) => (panic.id(), panic.to_string()),
        };
        let name = self.names.get(&id).copied().unwrap_or("a task");
        tracing::error!(task = name, why, "a task ended by itself");
        name.to_owned()
    }

    pub(crate) async fn all_ended(&mut self) {
        while self.running.join_next().await.is_some() {}
    }
}
