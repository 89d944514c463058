//! The defects: what known route controllers for this cloud do wrong, each as it would look in this code.

use super::{Edit, Mutation};

const MODEL: &str = "core/routes/src/model.rs";
const CONTROLLER: &str = "core/routes/src/controller/mod.rs";
const CONDITIONS: &str = "core/routes/src/controller/conditions.rs";
const INSTANCES: &str = "core/routes/src/controller/instances.rs";
const LANE: &str = "core/routes/src/controller/lane.rs";
const ANSWERS: &str = "core/routes/src/controller/lane/answers.rs";
const PLANNING: &str = "core/routes/src/controller/lane/planning.rs";
const REFUSALS: &str = "core/routes/src/controller/lane/refusals.rs";
const WINDOW: &str = "core/routes/src/controller/lane/window.rs";
const DIFF: &str = "core/routes/src/plan/diff.rs";

pub(super) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "raw-provider-ids",
        defect: "provider IDs are compared as they are spelt, so a node with a scheme in its ID never equals its own entry",
        edits: &[Edit {
            file: MODEL,
            old: "self.provider_id.trim().parse::<ProviderId>().map(|id| InstanceId::from(id.instance))",
            new: "self.provider_id.trim().parse::<ProviderId>().map(|id| InstanceId::from(if self.provider_id.contains(\"://\") { self.provider_id.clone() } else { id.instance }))",
        }],
    },
    Mutation {
        name: "no-collection-after-restart",
        defect: "entries of nodes that were not seen leaving stay for ever",
        edits: &[Edit {
            file: PLANNING,
            old: "let ripe = seen_leaving || stale_since.get(&key).is_some_and(|since| *since + grace <= now);",
            new: "let ripe = seen_leaving && stale_since.contains_key(&key) | (grace <= now);",
        }],
    },
    Mutation {
        name: "one-table-is-enough",
        defect: "a node is called available when one of several tables has its entry",
        edits: &[Edit {
            file: CONDITIONS,
            old: "for table in &served.tables {\n            if let Some(problem)",
            new: "for table in served.tables.iter().take(1) {\n            if let Some(problem)",
        }],
    },
    Mutation {
        name: "forgotten-after-one-table",
        defect: "a node that left is forgotten when the first table has lost its entry, and the other tables keep theirs",
        edits: &[
            Edit { file: ANSWERS, old: "if !elsewhere {", new: "if !elsewhere || entry.id.is_ascii() {" },
            Edit {
                file: PLANNING,
                old: "let ripe = seen_leaving || stale_since.get(&key).is_some_and(|since| *since + grace <= now);",
                new: "let ripe = seen_leaving && stale_since.contains_key(&key) | (grace <= now);",
            },
        ],
    },
    Mutation {
        name: "told-only-when-created",
        defect: "a node that registers anew while its entry is there stays unavailable",
        edits: &[
            Edit { file: CONDITIONS, old: "self.queue.add_at(node.name.clone(), due);", new: "let _ = due;" },
            Edit {
                file: ANSWERS,
                old: "        self.lane.look = true;\n        self.all_dirty(now);",
                new: "        self.lane.look = true;",
            },
            Edit {
                file: INSTANCES,
                old: "            .flatten()\n            .cloned()\n            .collect();\n        self.dirty(now, names);",
                new: "            .flatten()\n            .filter(|name| self.conditions.queue.failures(name) > 0)\n            .cloned()\n            .collect();\n        self.dirty(now, names);",
            },
        ],
    },
    Mutation {
        name: "duplicate-is-success",
        defect: "an entry that is there already counts as ours, wherever it points",
        edits: &[Edit {
            file: CONDITIONS,
            old: "if let Some(blocked) = self.lane.blocked.get(&place) {",
            new: "if self.lane.blocked.get(&place).is_some_and(|blocked| blocked.failure.class == crate::port::FailureClass::Duplicate) {\n            return None;\n        }\n        if let Some(blocked) = self.lane.blocked.get(&place) {",
        }],
    },
    Mutation {
        name: "failure-is-success",
        defect: "a node is called available when the tables could not be read",
        edits: &[Edit {
            file: CONDITIONS,
            old: "return node.network_unavailable.is_none().then(unseen);",
            new: "let _ = unseen; return Some(NetworkUnavailable { unavailable: false, reason: \"RouteCreated\".to_owned(), message: String::new() });",
        }],
    },
    Mutation {
        name: "pod-cidr-changes-unseen",
        defect: "a change of a node's pod CIDRs is not noticed",
        edits: &[Edit { file: CONTROLLER, old: "        && old.pod_cidrs == new.pod_cidrs\n", new: "" }],
    },
    Mutation {
        name: "dual-stack-stops-all",
        defect: "with two cluster CIDRs nothing is planned",
        edits: &[Edit {
            file: LANE,
            old: "if self.lane.look && self.lane.burst_until > now {",
            new: "if self.settings.pod_cidrs.len() > 1 { return None; }\n        if self.lane.look && self.lane.burst_until > now {",
        }],
    },
    Mutation {
        name: "one-refusal-stops-all",
        defect: "an entry that can never be created holds up all others",
        edits: &[Edit {
            file: REFUSALS,
            old: "                self.tell_refused(now, step, failure);\n",
            new: "                self.tell_refused(now, step, failure);\n                self.lane.pause_until = now + std::time::Duration::from_secs(240);\n",
        }],
    },
    Mutation {
        name: "foreign-is-ours",
        defect: "entries inside the pod CIDR that no node has are removed, whoever made them",
        edits: &[Edit {
            file: DIFF,
            old: "    ours && entry.status != EntryStatus::Deleting",
            new: "    (ours || entry.destination.prefix_len() == 24) && entry.status != EntryStatus::Deleting",
        }],
    },
    Mutation {
        name: "conflicts-without-bound",
        defect: "every entry that leads elsewhere goes at once, so a second cluster on the same pod CIDRs loses all its routes within seconds",
        edits: &[Edit {
            file: WINDOW,
            old: "most(nodes, self.settings.conflict_percent).map",
            new: "most(nodes * 50, self.settings.conflict_percent).map",
        }],
    },
    Mutation {
        name: "lost-answers-count-for-nothing",
        defect: "removals whose answer was lost are not counted, so the bound on them does not hold",
        edits: &[Edit {
            file: REFUSALS,
            old: "                    self.count_removal(now, step);\n",
            new: "",
        }],
    },
    Mutation {
        name: "created-while-under-way",
        defect: "an entry is created where a change is under way, whose end nobody has seen",
        edits: &[Edit {
            file: DIFF,
            old: "if free && wanted.create && !self.on_hold(*destination) {",
            new: "if free && wanted.create {",
        }],
    },
    Mutation {
        name: "claimed-when-asked-for",
        defect: "a node is called available when the creation of its entry was accepted, before it is in force",
        edits: &[Edit {
            file: LANE,
            old: "            && self.views.get(table).is_some_and(|view| view.carries(destination, instance))\n    }",
            new: "            && self.views.get(table).is_some_and(|view| view.carries(destination, instance))\n            || self.open.get(&place).is_some_and(|open| open.instance.as_ref() == Some(instance))\n    }",
        }],
    },
];
