//! The kinds of object that the emulator serves, and what the API says about each.

/// A kind of object, under its name in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Node.
    Nodes,
    /// `v1` Pod.
    Pods,
    /// `v1` Event.
    Events,
    /// `v1` ConfigMap.
    ConfigMaps,
    /// `v1` Namespace.
    Namespaces,
    /// `coordination.k8s.io/v1` Lease.
    Leases,
}

impl Resource {
    /// Every kind, in the order of discovery.
    pub const ALL: [Self; 6] =
        [Self::ConfigMaps, Self::Events, Self::Namespaces, Self::Nodes, Self::Pods, Self::Leases];

    /// The kind served under a group (empty for the core group), version and plural name.
    #[must_use]
    pub fn find(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|one| one.group() == group && one.version() == version && one.plural() == plural)
    }

    /// The API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Leases => "coordination.k8s.io",
            _ => "",
        }
    }

    /// The version in the group.
    #[must_use]
    pub fn version(self) -> &'static str {
        "v1"
    }

    /// Group and version as objects carry them.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Leases => "coordination.k8s.io/v1",
            _ => "v1",
        }
    }

    /// The name in paths.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Events => "events",
            Self::ConfigMaps => "configmaps",
            Self::Namespaces => "namespaces",
            Self::Leases => "leases",
        }
    }

    /// The name of one.
    #[must_use]
    pub fn singular(self) -> &'static str {
        match self {
            Self::Nodes => "node",
            Self::Pods => "pod",
            Self::Events => "event",
            Self::ConfigMaps => "configmap",
            Self::Namespaces => "namespace",
            Self::Leases => "lease",
        }
    }

    /// The names that kubectl accepts as short forms.
    #[must_use]
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Nodes => &["no"],
            Self::Pods => &["po"],
            Self::Events => &["ev"],
            Self::ConfigMaps => &["cm"],
            Self::Namespaces => &["ns"],
            Self::Leases => &[],
        }
    }

    /// The kind as objects carry it.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "Node",
            Self::Pods => "Pod",
            Self::Events => "Event",
            Self::ConfigMaps => "ConfigMap",
            Self::Namespaces => "Namespace",
            Self::Leases => "Lease",
        }
    }

    /// Whether objects live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::Namespaces)
    }

    /// Whether the `status` subresource exists.
    #[must_use]
    pub fn has_status(self) -> bool {
        matches!(self, Self::Nodes | Self::Pods | Self::Namespaces)
    }

    /// Whether a PUT of an absent object creates it.
    pub(crate) fn creates_on_update(self) -> bool {
        matches!(self, Self::Leases | Self::Events)
    }

    /// Whether a PUT may come without `metadata.resourceVersion`.
    pub(crate) fn updates_unconditionally(self) -> bool {
        !matches!(self, Self::Leases)
    }

    /// `nodes`, or `leases.coordination.k8s.io` outside of the core group, as error texts have it.
    pub(crate) fn qualified(self) -> String {
        if self.group().is_empty() {
            self.plural().to_owned()
        } else {
            format!("{}.{}", self.plural(), self.group())
        }
    }

    /// `Node`, or `Lease.coordination.k8s.io` outside of the core group.
    pub(crate) fn qualified_kind(self) -> String {
        if self.group().is_empty() {
            self.kind().to_owned()
        } else {
            format!("{}.{}", self.kind(), self.group())
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.plural())
    }
}
