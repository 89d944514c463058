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
    /// `v1` Secret.
    Secrets,
    /// `v1` Namespace.
    Namespaces,
    /// `v1` ServiceAccount.
    ServiceAccounts,
    /// `coordination.k8s.io/v1` Lease.
    Leases,
    /// `apps/v1` DaemonSet.
    DaemonSets,
    /// `apps/v1` Deployment.
    Deployments,
    /// `rbac.authorization.k8s.io/v1` ClusterRole.
    ClusterRoles,
    /// `rbac.authorization.k8s.io/v1` ClusterRoleBinding.
    ClusterRoleBindings,
    /// `rbac.authorization.k8s.io/v1` Role.
    Roles,
    /// `rbac.authorization.k8s.io/v1` RoleBinding.
    RoleBindings,
}

/// What discovery tells about a kind.
struct Facts {
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    kind: &'static str,
    namespaced: bool,
    status: bool,
}

const APPS: &str = "apps";
const COORDINATION: &str = "coordination.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

impl Facts {
    const fn new(
        group: &'static str,
        plural: &'static str,
        singular: &'static str,
        short: &'static [&'static str],
        kind: &'static str,
    ) -> Self {
        Self { group, plural, singular, short, kind, namespaced: true, status: false }
    }

    const fn cluster_wide(self) -> Self {
        Self { namespaced: false, ..self }
    }

    const fn with_status(self) -> Self {
        Self { status: true, ..self }
    }
}

impl Resource {
    /// Every kind, in the order of discovery.
    pub const ALL: [Self; 14] = [
        Self::ConfigMaps,
        Self::Events,
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Secrets,
        Self::ServiceAccounts,
        Self::DaemonSets,
        Self::Deployments,
        Self::Leases,
        Self::ClusterRoleBindings,
        Self::ClusterRoles,
        Self::RoleBindings,
        Self::Roles,
    ];

    /// The groups beside the core group, in the order of discovery.
    pub(crate) const GROUPS: [&'static str; 3] = [APPS, COORDINATION, RBAC];

    const fn facts(self) -> Facts {
        match self {
            Self::Nodes => Facts::new("", "nodes", "node", &["no"], "Node").cluster_wide().with_status(),
            Self::Pods => Facts::new("", "pods", "pod", &["po"], "Pod").with_status(),
            Self::Events => Facts::new("", "events", "event", &["ev"], "Event"),
            Self::ConfigMaps => Facts::new("", "configmaps", "configmap", &["cm"], "ConfigMap"),
            Self::Secrets => Facts::new("", "secrets", "secret", &[], "Secret"),
            Self::Namespaces => {
                Facts::new("", "namespaces", "namespace", &["ns"], "Namespace").cluster_wide().with_status()
            }
            Self::ServiceAccounts => {
                Facts::new("", "serviceaccounts", "serviceaccount", &["sa"], "ServiceAccount")
            }
            Self::Leases => Facts::new(COORDINATION, "leases", "lease", &[], "Lease"),
            Self::DaemonSets => {
                Facts::new(APPS, "daemonsets", "daemonset", &["ds"], "DaemonSet").with_status()
            }
            Self::Deployments => {
                Facts::new(APPS, "deployments", "deployment", &["deploy"], "Deployment").with_status()
            }
            Self::ClusterRoles => {
                Facts::new(RBAC, "clusterroles", "clusterrole", &[], "ClusterRole").cluster_wide()
            }
            Self::ClusterRoleBindings => {
                Facts::new(RBAC, "clusterrolebindings", "clusterrolebinding", &[], "ClusterRoleBinding")
                    .cluster_wide()
            }
            Self::Roles => Facts::new(RBAC, "roles", "role", &[], "Role"),
            Self::RoleBindings => Facts::new(RBAC, "rolebindings", "rolebinding", &[], "RoleBinding"),
        }
    }

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
        self.facts().group
    }

    /// The version in the group.
    #[must_use]
    pub fn version(self) -> &'static str {
        "v1"
    }

    /// Group and version as objects carry them.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self.group() {
            APPS => "apps/v1",
            COORDINATION => "coordination.k8s.io/v1",
            RBAC => "rbac.authorization.k8s.io/v1",
            _ => "v1",
        }
    }

    /// The name in paths.
    #[must_use]
    pub fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// The name of one.
    #[must_use]
    pub fn singular(self) -> &'static str {
        self.facts().singular
    }

    /// The names that kubectl accepts as short forms.
    #[must_use]
    pub fn short_names(self) -> &'static [&'static str] {
        self.facts().short
    }

    /// The kind as objects carry it.
    #[must_use]
    pub fn kind(self) -> &'static str {
        self.facts().kind
    }

    /// Whether objects live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        self.facts().namespaced
    }

    /// Whether the `status` subresource exists.
    #[must_use]
    pub fn has_status(self) -> bool {
        self.facts().status
    }

    /// Whether `kubectl get all` shows it.
    pub(crate) fn in_all(self) -> bool {
        matches!(self, Self::Pods | Self::DaemonSets | Self::Deployments)
    }

    /// Whether the API server counts changes of what is asked for in `metadata.generation`.
    pub(crate) fn has_generation(self) -> bool {
        matches!(self, Self::DaemonSets | Self::Deployments)
    }

    /// Whether a PUT of an absent object creates it.
    pub(crate) fn creates_on_update(self) -> bool {
        matches!(self, Self::Leases | Self::Events) || self.group() == RBAC
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
