//! What a round would do, as text.

use std::fmt::Write as _;
use std::time::Duration;

use crate::publish::{Publication, missing_annotations};
use crate::{Daemon, Error};

impl Daemon {
    /// What the daemon would do: the plan's steps as the lines a person would type, the subnet file and the annotations as
    /// comments. Waits up to `patience` for the API server.
    ///
    /// # Errors
    /// When the node cannot be read in that time, or as [`Daemon::run`].
    pub async fn dry_run(&mut self, patience: Duration) -> Result<String, Error> {
        if tokio::time::timeout(patience, self.watch.ready()).await.is_err() {
            let why =
                self.watch.trouble().map_or_else(|| "no answer".to_owned(), |trouble| trouble.to_string());
            return Err(Error::Unknown(format!("cannot read node {}: {why}", self.name())));
        }
        self.gather().await;
        let node = self.own_node().map_err(Error::Unknown)?;
        self.subnets = self
            .assigned(&node)
            .map_err(|source| Error::Assignment { node: self.name().to_owned(), source })?;
        let standpoint = self.standpoint(&node)?;
        self.update_peers();
        let (network, flaws) = self.network(&standpoint);
        let plan =
            loden_node::plan(&mut self.kernel, &network.scope(), |observed| network.desired(observed))?;
        let mut out = plan.to_string();
        let text = self.settings.subnet_env(&self.subnets, &standpoint.external).render();
        if self.file.read()?.as_deref() != Some(text.as_str()) {
            let _ = writeln!(out, "# write {}", self.file.path().display());
            out.extend(text.lines().map(|line| format!("#   {line}\n")));
        }
        let attributes = self.settings.attributes(&standpoint);
        let publication = Publication { node, attributes, ready: false };
        for (key, value) in missing_annotations(&self.settings.annotation_keys, &publication) {
            let _ = writeln!(out, "# annotate node {} {key}={}", self.name(), value.unwrap_or_default());
        }
        for (node, flaw) in flaws {
            let _ = writeln!(out, "# node {node}: {flaw}");
        }
        if out.is_empty() {
            out.push_str("# nothing to do\n");
        }
        Ok(out)
    }
}
